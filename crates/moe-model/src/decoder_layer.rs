//! Reads decoder layers from named tensors, and names their tensors again.

use crate::codec::{Namer, TensorReader, cannot, names};
use crate::family::DenseRule;
use crate::layer::{Expert, Ffn, Layer};
use crate::shape::ModelShape;
use crate::{Error, Kind, Result, attention, mixture};

pub(crate) fn read(
    reader: &mut TensorReader<'_>,
    index: usize,
    shape: &ModelShape,
    window: Option<usize>,
) -> Result<Layer> {
    let prefix = format!("{}{index}.", names::LAYERS);
    let attention_norm = reader.take(prefix.clone() + names::ATTENTION_NORM, &[shape.hidden])?;
    let attention = attention::read(reader, &prefix, shape, window)?;
    let ffn_norm = reader.take(prefix.clone() + names::FFN_NORM, &[shape.hidden])?;
    let ffn = read_ffn(reader, &prefix, index, shape.hidden)?;
    Ok(Layer { attention_norm, attention, ffn_norm, ffn })
}

fn read_ffn(
    reader: &mut TensorReader<'_>,
    prefix: &str,
    index: usize,
    hidden: usize,
) -> Result<Ffn> {
    let family = reader.config.family;
    match (&family.moe, &family.dense) {
        (Some(rule), _) if mixture::is_sparse(&reader.config, rule, index)? => {
            Ok(Ffn::Moe(Box::new(mixture::read(reader, prefix, rule, hidden)?)))
        }
        (_, Some(rule)) => Ok(Ffn::Dense(Box::new(dense(reader, prefix, rule, hidden)?))),
        (_, None) => {
            let what = format!("layer {index} is dense, which this family can't be");
            Err(Error::new(Kind::Unsupported, what)
                .file(reader.config.file)
                .remedy("get the config.json that belongs to these weights"))
        }
    }
}

fn dense(
    reader: &mut TensorReader<'_>,
    prefix: &str,
    rule: &DenseRule,
    hidden: usize,
) -> Result<Expert> {
    let (bias, width) = (reader.config.flag(&rule.bias)?, reader.config.positive(&rule.width)?);
    reader.expert(prefix, &rule.names, bias, width, hidden)
}

pub(crate) fn name(namer: &mut Namer<'_>, index: usize, layer: &Layer) -> Result<()> {
    let prefix = format!("{}{index}.", names::LAYERS);
    namer.push(format!("{prefix}{}", names::ATTENTION_NORM), &layer.attention_norm);
    attention::name(namer, &prefix, &layer.attention)?;
    namer.push(format!("{prefix}{}", names::FFN_NORM), &layer.ffn_norm);
    match &layer.ffn {
        Ffn::Dense(expert) => {
            let rule = namer.family.dense.as_ref().ok_or_else(|| cannot("dense layers"))?;
            namer.expert(&prefix, &rule.names, expert);
        }
        Ffn::Moe(moe) => {
            let rule = namer.family.moe.as_ref().ok_or_else(|| cannot("experts"))?;
            mixture::name(namer, &prefix, rule, moe);
        }
    }
    Ok(())
}
