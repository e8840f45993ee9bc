//! Healing: a short continued training after upcycling, pruning or merging.

use std::path::PathBuf;

use clap::ValueEnum;
use moe_checkpoint::counted;
use moe_forward::train::{Parameters, TeacherKind, TrainedPart};
use moe_model::{Error, Kind, Model, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::pass::{
    Effect, Inputs, Kept, LayerEdits, Next, Outputs, Pass, PassInfo, PassOptions, Plan,
    PlannedModel, ReportKind, Sources, Transform, as_value,
};
use crate::train::{RouterOptions, TeacherOptions, TrainOptions, Training, TrainingText};
use crate::usage::{idle, usage};

/// Options of `heal`.
#[derive(Debug, Clone, clap::Args, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct HealOptions {
    /// Parts that are trained, separated by commas. Expert correction biases, and layers for
    /// multi-token prediction, never change.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = router())]
    #[serde(default = "router")]
    pub train: Vec<Trained>,

    /// The model before it was pruned, merged or upcycled. Training minimizes the forward KL to its
    /// distribution of next tokens. It runs layer by layer, and is never in memory together with
    /// what is trained.
    #[arg(long, value_name = "ORIGINAL")]
    #[serde(default)]
    #[serde(serialize_with = "moe_checkpoint::lossy_paths")]
    pub original: Option<PathBuf>,

    /// Weight of that KL; the loss of next tokens has the rest of 1.
    #[arg(long, value_name = "WEIGHT", default_value_t = whole())]
    #[serde(default = "whole")]
    pub original_weight: f64,

    /// Part of the original's distribution that is used: full runs the original for every batch;
    /// top-k (the most probable tokens and the mass of the others) and sampled (tokens drawn by
    /// their probability, 2503.16870) run it once.
    #[arg(long, value_enum, value_name = "WHICH", default_value_t)]
    #[serde(default)]
    pub original_logits: OriginalLogits,

    /// Entries of the vocabulary that are kept or drawn for each token of the text, with
    /// --original-logits top-k or sampled.
    #[arg(long, value_name = "N", default_value_t = default_logits_per_token())]
    #[serde(default = "default_logits_per_token")]
    pub original_logits_per_token: usize,

    #[command(flatten)]
    #[serde(flatten)]
    #[allow(missing_docs)]
    pub text: TrainingText,

    #[command(flatten)]
    #[serde(flatten)]
    #[allow(missing_docs)]
    pub training: TrainOptions,

    #[command(flatten)]
    #[serde(flatten)]
    #[allow(missing_docs)]
    pub routers: RouterOptions,
}

/// A part of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Trained {
    /// Routers, and gates of shared experts.
    Router,
    /// Routed experts.
    Experts,
    /// Shared experts.
    Shared,
    /// Attention's projections.
    Attention,
    /// All norms.
    Norms,
    /// The embedding and the output head.
    Embeddings,
    /// All of these, and networks of dense layers.
    All,
}

impl Trained {
    fn parts(&self) -> Vec<TrainedPart> {
        match self {
            Self::Router => vec![TrainedPart::Routers],
            Self::Experts => vec![TrainedPart::Experts],
            Self::Shared => vec![TrainedPart::Shared],
            Self::Attention => vec![TrainedPart::Attention],
            Self::Norms => vec![TrainedPart::Norms],
            Self::Embeddings => vec![TrainedPart::Embeddings],
            Self::All => TrainedPart::ALL.to_vec(),
        }
    }
}

/// The part of the original's distribution that is used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OriginalLogits {
    /// All of it.
    #[default]
    Full,
    /// The most probable tokens.
    TopK,
    /// Tokens drawn at random.
    Sampled,
}

fn router() -> Vec<Trained> {
    vec![Trained::Router]
}

fn whole() -> f64 {
    1.0
}

fn default_logits_per_token() -> usize {
    64
}

/// The warning for a teacher that has nothing to teach.
const SELF_TAUGHT: &str = "--original is the very model that is trained, whose distribution it has already: nothing is learned from it. Give the \
     model before it was pruned, merged or upcycled";

/// The remedies where a model has no part of those that are to be trained: a dense model, and an
/// MoE.
const DENSE_PARTS: &str =
    "it is a dense model: give --train all, or --train attention,norms,embeddings";
const FEWER_PARTS: &str = "leave that word out of --train, such as --train router,experts";

impl HealOptions {
    /// The same options with the defaults that follow from the number of steps.
    fn spelled_out(&self) -> Self {
        let train = match self.train.contains(&Trained::All) {
            true => vec![Trained::All],
            false => {
                let parts = Trained::value_variants().iter();
                parts.filter(|part| self.train.contains(part)).copied().collect()
            }
        };
        let warmup = (self.training.steps > 0).then(|| self.training.warmup());
        let data_tokens = Some(self.text.most_tokens(&self.training));
        Self {
            train,
            training: TrainOptions { warmup, ..self.training.clone() },
            text: TrainingText { data_tokens, ..self.text.clone() },
            ..self.clone()
        }
    }

    fn parts(&self) -> Vec<TrainedPart> {
        self.train.iter().flat_map(Trained::parts).collect()
    }

    /// The parts that are trained, in the words of --train.
    fn words(&self) -> String {
        let words = self.train.iter().filter_map(|trained| trained.to_possible_value());
        words.map(|word| word.get_name().to_owned()).collect::<Vec<_>>().join(", ")
    }

    fn teacher(&self) -> Option<TeacherOptions> {
        let kind = match self.original_logits {
            OriginalLogits::Full => TeacherKind::Logits,
            OriginalLogits::TopK => TeacherKind::Top(self.original_logits_per_token),
            OriginalLogits::Sampled => {
                TeacherKind::Sampled(self.original_logits_per_token, self.text.seed)
            }
        };
        self.original.as_ref().map(|_| TeacherOptions { weight: self.original_weight, kind })
    }

    fn check(&self, sources: &Sources<'_>) -> Result<()> {
        self.check_options()?;
        if sources.model.quantization.is_some() {
            return Err(Error::new(Kind::Unsupported, "quantized weights can't be trained")
                .file(&sources.model.config_file)
                .remedy("heal the unquantized checkpoint, then quantize the result"));
        }
        if let Some(teacher) =
            sources.others.first().filter(|teacher| teacher.vocab != sources.model.vocab)
        {
            let what = format!(
                "a teacher of {} tokens can't teach a model of {}",
                teacher.vocab, sources.model.vocab
            );
            return Err(Error::new(Kind::Mismatch, what)
                .file(&teacher.config_file)
                .remedy("give the original, which has the same tokenizer"));
        }
        self.check_parts(sources.model)
    }

    /// Refuses options of --original where there is none, and numbers that leave nothing of it.
    fn check_original(&self) -> Result<()> {
        if !(0.0..=1.0).contains(&self.original_weight) {
            let what = format!("--original-weight {} is not a share", self.original_weight);
            return Err(usage(&["--original-weight"], what, "give a number from 0 to 1"));
        }
        let is_whole = self.original_logits == OriginalLogits::Full;
        if self.original.is_none() && (self.original_weight != whole() || !is_whole) {
            let what = "--original-weight and --original-logits say how --original is used, and none is given";
            return Err(idle(
                &["--original-weight", "--original-logits"],
                what,
                "give --original ORIGINAL",
            ));
        }
        if self.original.is_some() && !is_whole && self.original_logits_per_token == 0 {
            let what =
                "--original-logits-per-token 0 leaves nothing of the original's distribution";
            return Err(usage(
                &["--original-logits-per-token"],
                what,
                "give at least 1, or leave it out",
            ));
        }
        if self.original_logits_per_token != default_logits_per_token() && is_whole {
            let what = "--original-logits-per-token is for --original-logits top-k and sampled, and the whole distribution is used";
            let remedy = "give --original-logits top-k, or leave --original-logits-per-token out";
            return Err(idle(&["--original-logits-per-token"], what, remedy));
        }
        Ok(())
    }

    /// Refuses to train parts that `model` doesn't have.
    fn check_parts(&self, model: &Model) -> Result<()> {
        let is_dense = model.moes().next().is_none();
        if let Some(option) = self.routers.given().filter(|_| is_dense) {
            let what = format!("{option} is about routers, and this model has none");
            let remedy = format!("leave {option} out: it is a dense model");
            return Err(idle(&[option], what, remedy).file(&model.config_file));
        }
        if self.train.contains(&Trained::All) {
            return Ok(());
        }
        for (trained, part, name) in [
            (Trained::Router, TrainedPart::Routers, "routers"),
            (Trained::Experts, TrainedPart::Experts, "experts"),
            (Trained::Shared, TrainedPart::Shared, "shared experts"),
        ] {
            if self.train.contains(&trained) && Parameters::elements(model, &[part]) == 0 {
                let remedy = if is_dense { DENSE_PARTS } else { FEWER_PARTS };
                let what = format!("this model has no {name} to train");
                return Err(usage(&["--train"], what, remedy).file(&model.config_file));
            }
        }
        Ok(())
    }
}

/// The row of [`crate::PASSES`].
pub(crate) static INFO: PassInfo = PassInfo {
    name: "heal",
    about: "Train a little after upcycling, pruning or merging: routers alone, experts, or all",
    examples: "Examples:\n  \
        moe-convert heal golden/models/moe -o target/healed --steps 4 --eval-every 2 --data-tokens 4096 \\\n    \
        --data golden/text/english.calibration.txt \\\n    \
        --held-out golden/text/english.heldout.txt --held-out-tokens 1024\n  \
        moe-convert heal golden/models/moe -o target/all --train all --steps 2 --learning-rate 1e-4 \\\n    \
        --z-loss 0.001 --data golden/text/english.calibration.txt --data-tokens 4096\n\n\
        docs/heal.md is the guide.",
    options: PassOptions::of::<HealOptions>(),
    least_options: "train = [\"all\"]\ndata = [\"text\"]",
    targets: |_| &[],
    benchmark: None,
    baseline: None,
    choice: None,
    details: None,
    report: ReportKind::Training,
    healed_with: None,
    resumes_midway: true,
    decides_at_once: false,
    less_memory: "lower --batch-tokens, --sequence-length or --held-out-tokens, or train fewer parts (--train router)",
};

impl Pass for HealOptions {
    fn info(&self) -> &'static PassInfo {
        &INFO
    }

    fn options(&self) -> Value {
        as_value(&self.spelled_out())
    }

    fn inputs(&self) -> Inputs<'_> {
        Inputs {
            models: self.original.as_slice(),
            ..Inputs::of_text(&self.text.data, self.text.held_out())
        }
    }

    fn outputs(&self) -> Outputs<'_> {
        Outputs { plan: None, training: true }
    }

    fn check_options(&self) -> Result<()> {
        self.training.check()?;
        self.routers.check()?;
        self.text.check()?;
        if self.text.data.iter().chain(&self.text.held_out).any(|spec| spec.weight.is_some()) {
            let remedy = "leave @WEIGHT out, and give more or less of a text";
            return Err(usage(&["--data", "--held-out"], "training does not weigh labels", remedy));
        }
        self.check_original()?;
        if self.training.patience > 0 && self.text.held_out.is_empty() {
            let what = "--patience needs something to measure on";
            return Err(idle(&["--patience"], what, "give --held-out TEXT"));
        }
        Ok(())
    }

    fn plan(&self, sources: &Sources<'_>) -> Result<Plan> {
        self.check(sources)?;
        let training = Training {
            what: self.words(),
            parts: self.parts(),
            options: self.training.clone(),
            routers: self.routers.clone(),
            text: self.text.clone(),
            teacher: self.teacher(),
        };
        Plan::new(self.clone(), sources, Next::Train(training))
    }
}

impl Transform for HealOptions {
    fn apply(&self, sources: &Sources<'_>, _: Option<&LayerEdits>) -> Result<PlannedModel> {
        let model = sources.model.clone();
        let (kept, why) = match self.training.steps {
            0 => (Kept::Exactly, "no step is taken".to_owned()),
            steps => {
                (Kept::No, format!("{} trained for up to {}", self.words(), counted(steps, "step")))
            }
        };
        let mut warnings: Vec<String> = model.caveats().map(str::to_owned).collect();
        if !model.mtp.is_empty() {
            warnings.push("layers for multi-token prediction are not trained along".to_owned());
        }
        if self.training.learning_rate > 1.0 {
            let rate = self.training.learning_rate;
            let what = "AdamW moves each weight by up to the learning rate in a step";
            warnings.push(format!("{what}, and {rate} is larger than weights are: 1e-4 is usual"));
        }
        if self.original.is_some()
            && matches!(sources.first_alike, [first, teacher] if first == teacher)
        {
            warnings.push(SELF_TAUGHT.to_owned());
        }
        let effects = vec![Effect::new("train", kept, why)];
        Ok(PlannedModel::new(model, effects, Vec::new(), warnings))
    }
}
