//! Names that other tools have for the very same options. docs/coming-from.md lists them.

/// Names in other tools, and the option that means the same.
pub(super) struct Alias {
    names: &'static str,
    pub option: &'static str,
    /// The commands that the names hold for, where other commands have an option of that name;
    /// empty for all.
    commands: &'static [&'static str],
    /// Whether its value is a number of bits, for which the option takes a scheme.
    pub in_scheme: bool,
}

impl Alias {
    const fn new(names: &'static str, option: &'static str) -> Self {
        Self { names, option, commands: &[], in_scheme: false }
    }

    const fn of(self, commands: &'static [&'static str]) -> Self {
        Self { commands, ..self }
    }

    const fn in_scheme(self) -> Self {
        Self { in_scheme: true, ..self }
    }

    fn is_of(&self, command: &str) -> bool {
        self.commands.is_empty() || self.commands.contains(&command)
    }

    /// Each name with the option.
    fn each(&self) -> impl Iterator<Item = (&'static str, &'static str)> + use<> {
        let option = self.option;
        self.names.split_whitespace().map(move |name| (name, option))
    }

    fn has_name(&self, name: &str) -> bool {
        self.names.split_whitespace().any(|known| known == name)
    }
}

/// All aliases. A name may be in one row only.
pub(super) const ALIASES: &[Alias] = &[
    Alias::new("num-experts num-local-experts n-routed-experts", "experts"),
    Alias::new(
        "num-experts-per-tok num-experts-per-token experts-per-token moe-router-topk topk",
        "top-k",
    ),
    Alias::new("moe-upcycling-granularity", "granularity"),
    Alias::new("bits wbits w-bit num-bits", "scheme").in_scheme(),
    Alias::new("groupsize q-group-size", "group-size"),
    Alias::new("dampening-frac percdamp damp-percent", "damping"),
    Alias::new("asym", "asymmetric"),
    Alias::new("file", "data"),
    Alias::new(
        "max-seq-length max-sequence-length max-seq-len seq-length seq-len seqlen ctx-size",
        "sequence-length",
    ),
    Alias::new("lr", "learning-rate"),
    // In distill, steps are counted by layer.
    Alias::new("max-steps train-iters", "steps").of(&["heal"]),
    Alias::new("gradient-accumulation-steps", "accumulate"),
    Alias::new("warmup-steps num-warmup-steps lr-warmup-iters", "warmup"),
    Alias::new("max-grad-norm clip-grad", "clip"),
    Alias::new("eval-steps eval-interval", "eval-every"),
    Alias::new("early-stopping-patience", "patience"),
    Alias::new("teacher-model teacher-model-name-or-path", "original").of(&["heal"]),
    Alias::new("output-dir out-dir save-dir", "output"),
    Alias::new("random-seed rng-seed", "seed"),
    Alias::new("num-threads n-threads", "threads"),
];

/// The rows of `name` that hold for `command`, whether or not it has their options.
pub(super) fn rows(name: &str, command: &str) -> impl Iterator<Item = &'static Alias> {
    ALIASES.iter().filter(move |alias| alias.has_name(name) && alias.is_of(command))
}

/// The options that `name` can stand for.
pub(super) fn options(name: String) -> impl Iterator<Item = &'static str> {
    ALIASES.iter().filter(move |alias| alias.has_name(&name)).map(|alias| alias.option)
}

/// The names that hold for `command`, with their options.
pub(super) fn names_of(command: &str) -> impl Iterator<Item = (&'static str, &'static str)> {
    ALIASES.iter().filter(move |alias| alias.is_of(command)).flat_map(Alias::each)
}

/// All names with their options, for the table of the guide.
#[cfg(test)]
pub(super) fn all() -> impl Iterator<Item = (&'static str, &'static str)> {
    ALIASES.iter().flat_map(Alias::each)
}
