//! The sentences that edits are displayed as.

use std::fmt;

use super::{
    Network, NetworkEdit, NetworkSource, Neurons, NoiseEdit, ProjectionScale, RouterEdit,
    RouterRows, SharedEdit,
};

impl SharedEdit {
    /// The sentence for this edit. `experts_of_others`: whether the layer's experts come from other
    /// models.
    pub(in crate::pass) fn sentence(&self, experts_of_others: bool) -> String {
        let Self { network, gate } = self;
        let source = network.sources.first();
        let whose = match source.and_then(|source| source.model.as_ref()) {
            Some(_) => "the mean of the networks",
            None if experts_of_others => "the base's network",
            None => "the dense network",
        };
        let what = match source.and_then(|source| source.neurons) {
            Some(Neurons::Count(_)) => "neurons that every token uses".to_owned(),
            Some(Neurons::Copies(count)) => format!("{count} copies of {whose}"),
            Some(Neurons::Shard { index, of }) => format!("shard {index} of {of} of {whose}"),
            None => format!("copy of {whose}"),
        };
        let gate = gate.map_or(String::new(), |gate| format!(", gate {gate}"));
        format!("{what}{}{gate}", network.scale)
    }
}

impl fmt::Display for NetworkEdit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.never_selected {
            return f.write_str("never selected");
        }
        fmt_sources(&self.sources, f)?;
        self.scale.fmt(f)?;
        if let Some(share) = self.redrawn {
            write!(f, ", a share {share} of its neurons reinitialized")?;
        }
        match self.noise {
            Some(NoiseEdit { std, share }) => {
                write!(f, ", noise of std {std} on a share of {share}")
            }
            None => Ok(()),
        }
    }
}

/// Writes what a network is made of, in words.
fn fmt_sources(sources: &[NetworkSource], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let [first, others @ ..] = sources else { return f.write_str("decided when it runs") };
    if first.weight.is_some() {
        return fmt_mean(sources, f);
    }
    match first.neurons {
        Some(Neurons::Count(count)) => write!(f, "{count} neurons of {}", first.whose())?,
        Some(Neurons::Copies(count)) => write!(f, "{count} copies of {}", first.whose())?,
        Some(Neurons::Shard { index, of }) => {
            write!(f, "shard {index} of {of} of {}", first.whose())?
        }
        None if matches!(first.network, Network::Dense) => write!(f, "copy of {}", first.whose())?,
        None => f.write_str(&first.whose())?,
    }
    if others.is_empty() {
        return Ok(());
    }
    let neurons: usize = others.iter().filter_map(NetworkSource::count).sum();
    let of = if neurons > 0 { format!("{neurons} neurons of ") } else { String::new() };
    let names: Vec<String> = others.iter().map(|source| source.network.to_string()).collect();
    write!(f, " with {of}{}", names.join(", "))
}

/// Writes a weighted mean of networks as a sum.
fn fmt_mean(sources: &[NetworkSource], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    for (index, source) in sources.iter().enumerate() {
        let plus = if index > 0 { " + " } else { "" };
        write!(f, "{plus}{:.3} × {}", source.weight.unwrap_or(1.0), source.whose())?;
    }
    Ok(())
}

impl NetworkSource {
    /// The number of its neurons that are taken, where only the number is known.
    fn count(&self) -> Option<usize> {
        match self.neurons? {
            Neurons::Count(count) => Some(count),
            Neurons::Copies(_) | Neurons::Shard { .. } => None,
        }
    }

    /// The name of the network, in words.
    fn whose(&self) -> String {
        match (&self.model, self.network) {
            (Some(model), _) => format!("the network of {model}"),
            (None, Network::Dense) => "the dense network".to_owned(),
            (None, Network::Expert { expert }) => format!("expert {expert}"),
        }
    }
}

/// The number of an expert, or the kind of the network.
impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dense => f.write_str("the dense network"),
            Self::Expert { expert } => expert.fmt(f),
        }
    }
}

impl fmt::Display for ProjectionScale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.gate_and_up != 1.0 {
            write!(f, ", gate and up projections × {:.6}", self.gate_and_up)?;
        }
        if self.down != 1.0 {
            write!(f, ", down projection × {}", (self.down * 1e6).round() / 1e6)?;
        }
        Ok(())
    }
}

impl fmt::Display for RouterEdit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.rows.fmt(f)?;
        match self.repeated {
            1 => Ok(()),
            times => write!(f, "; each row {times} times, once for each shard"),
        }
    }
}

impl fmt::Display for RouterRows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Kept { kept, of, never_selected: 0 } => write!(f, "{kept} of {of} rows"),
            Self::Kept { kept, of, never_selected } => {
                write!(f, "{kept} of {of} rows, and {never_selected} that are never selected")
            }
            Self::Normal { std, seed } => write!(f, "normal, std {std:e}, seed {seed}"),
            Self::Orthogonal { std, seed } => {
                write!(f, "orthogonal rows as long as normal ones of std {std:e}, seed {seed}")
            }
            Self::Kmeans { seed, .. } => {
                write!(f, "k-means of the layer's FFN inputs, seed {seed}")
            }
            Self::Prompts { .. } => f.write_str("mean FFN inputs on prompts"),
            Self::CheapEmbed { .. } => f.write_str("token embeddings of prompts"),
            Self::Activations { .. } => {
                f.write_str("inputs on which an expert's neurons are most active")
            }
        }?;
        fmt_entropy(self, f)
    }
}

/// Writes how rows that were made of text are scaled; nothing for other rows.
fn fmt_entropy(rows: &RouterRows, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match rows {
        RouterRows::Kept { .. } | RouterRows::Normal { .. } | RouterRows::Orthogonal { .. } => {
            Ok(())
        }
        RouterRows::Kmeans { entropy, .. }
        | RouterRows::Prompts { entropy }
        | RouterRows::CheapEmbed { entropy }
        | RouterRows::Activations { entropy } => match entropy {
            Some(share) => write!(f, ", scaled to {share} of the maximum entropy"),
            None => f.write_str(", unscaled"),
        },
    }
}
