//! Expands steps: fills in defaults, repeats blocks for every combination of their choices, and
//! replaces variables.

use std::collections::BTreeMap;

use moe_checkpoint::{Error, Result};
use toml::{Table, Value};

use super::blocks::{Block, MAX_STEPS, Setting, settings, too_many};
use super::commands::OF_STEPS;
use super::idle::{drop_idle, is_emptied};
use super::keys::{StepKeys, WrittenStep, passes_mut, passes_of};
use super::mistake::{Mistake, usage};
use super::parsed::Step;
use super::source::RecipeText;
use super::spare::{LeftOutKey, Spare};
use super::spelled::{self, EarlierKey, EarlierKeys};
use super::steps::parse_step;
use super::variables::Variables;

/// The expanded steps of a recipe so far.
pub(super) struct Expansion<'a> {
    source: RecipeText<'a>,
    /// Keys by command, for steps that don't have them.
    defaults: &'a BTreeMap<String, Table>,
    variables: Variables,
    /// The choices of the blocks around the current step, in the words of messages.
    chosen: Vec<String>,
    steps: Vec<Step>,
    /// Keys that are meant for several steps.
    spare: Spare,
    /// Keys that are written by earlier names.
    earlier: EarlierKeys,
}

/// The steps of a recipe, the variables that they used, and keys with earlier names.
pub(super) struct Expanded {
    pub steps: Vec<Step>,
    pub variables: Variables,
    pub earlier: EarlierKeys,
}

/// A step that is being expanded, as messages name it.
#[derive(Default)]
struct Site<'p> {
    /// The number of the step, after those of the blocks around it, with dots.
    place: &'p str,
    /// The command; empty where the step names none.
    command: String,
    /// The values chosen in the blocks around it.
    chosen: String,
    /// The commands whose defaults fill it in: its own, then those of its passes.
    filled_by: Vec<String>,
}

impl Site<'_> {
    /// The place and the name of the step.
    fn named(&self) -> String {
        let Self { place, command, chosen, .. } = self;
        match (command.is_empty(), chosen.is_empty()) {
            (true, _) => format!("step {place}"),
            (false, true) => format!("step {place} ({command})"),
            (false, false) => format!("step {place} ({command}; {chosen})"),
        }
    }

    /// The commands whose defaults pass number `pass` may have, its own first.
    fn filled_by(&self, pass: usize) -> impl Iterator<Item = &str> {
        self.filled_by.get(pass).into_iter().chain(&self.filled_by).map(String::as_str)
    }
}

impl<'a> Expansion<'a> {
    pub fn new(
        source: RecipeText<'a>,
        defaults: &'a BTreeMap<String, Table>,
        variables: Variables,
        earlier: EarlierKeys,
    ) -> Self {
        let (chosen, steps, spare) = (Vec::new(), Vec::new(), Spare::default());
        Self { source, defaults, variables, chosen, steps, spare, earlier }
    }

    /// All steps.
    ///
    /// # Errors
    /// The error about a key for several steps that none of them uses.
    pub fn finish(self) -> Result<Expanded> {
        self.spare.check()?;
        Ok(Expanded { steps: self.steps, variables: self.variables, earlier: self.earlier })
    }

    /// Appends the steps that `tables` expand to; `place` is the number of the surrounding block
    /// with a dot, or empty.
    pub fn steps(&mut self, tables: &[Table], place: &str) -> Result<()> {
        for (index, table) in tables.iter().enumerate() {
            let place = format!("{place}{}", index + 1);
            if Block::is_one(table) {
                self.block(table.clone(), &place)?;
            } else {
                self.command(table.clone(), &place)?;
            }
        }
        Ok(())
    }

    fn command(&mut self, mut table: Table, place: &str) -> Result<()> {
        // Which defaults apply depends on the commands.
        let named = self.name_commands(&mut table);
        let mut site = Site { place, ..Site::default() };
        named.map_err(|mistake| self.wrong(mistake, &site))?;
        (site.command, site.chosen) = (run_of(&table), self.chosen.join(", "));
        self.spell(&mut table, &site)?;
        let overridden = self.overridden(&site.command, &table);
        let written = self.fill_in(&site.command, &mut table);
        site.filled_by = written.iter().map(|written| written.command.clone()).collect();
        if self.steps.len() == MAX_STEPS {
            return Err(too_many());
        }
        let filled = (!overridden.is_empty()).then(|| table.clone());
        self.replace(&mut table).map_err(|mistake| self.wrong(mistake, &site))?;
        let step = self.parse(table, written, &site)?;
        if let Some(filled) = filled {
            self.check_overridden(&site.command, filled, &overridden)?;
        }
        self.steps.push(Step { chosen: site.chosen, ..step });
        Ok(())
    }

    /// Replaces variables in the names of the commands that `table` runs.
    fn name_commands(&mut self, table: &mut Table) -> Result<(), Mistake> {
        for (index, pass) in passes_mut(table).enumerate() {
            let named = pass.get_mut("run").map_or(Ok(()), |run| self.variables.replace(run));
            named.map_err(|error| Mistake::about(["run"], error).in_pass(index + 1))?;
        }
        let named = table.get_mut("run").map_or(Ok(()), |run| self.variables.replace(run));
        named.map_err(|error| Mistake::about(["run"], error))
    }

    /// Gives the keys of the step at `site`, and of its passes, their current names and spelling.
    fn spell(&mut self, table: &mut Table, site: &Site<'_>) -> Result<()> {
        let earlier = spelled::keys(table, &site.command);
        self.take_down(earlier, 0, site)?;
        for (index, pass) in passes_mut(table).enumerate() {
            let Some(pass) = pass.as_table_mut() else { continue };
            let earlier = spelled::keys(pass, &run_of(pass));
            self.take_down(earlier, index + 1, site)?;
        }
        Ok(())
    }

    /// Records the keys of a step, or of its pass number `pass`, that have `earlier` names.
    fn take_down(
        &mut self,
        earlier: Result<Vec<EarlierKey>, Mistake>,
        pass: usize,
        site: &Site<'_>,
    ) -> Result<()> {
        for key in earlier.map_err(|mistake| self.wrong(mistake.in_pass(pass), site))? {
            let line = self.source.line_of_key(site.place, pass, &key.was);
            self.earlier.add(key, line, &format!("step {} ({})", site.place, site.command));
        }
        Ok(())
    }

    /// The keys of `table`, which runs `command`, that override a default. Defaults with variables
    /// are left out, since these may be undefined for this step.
    fn overridden(&self, command: &str, table: &Table) -> Vec<String> {
        let defaults = self.defaults.get(command).into_iter().flatten();
        let overridden = defaults
            .filter(|(key, value)| table.contains_key(*key) && !value.to_string().contains("${"));
        overridden.map(|(key, _)| key.clone()).collect()
    }

    /// Fills in the defaults of a step that runs `command`, and of its passes. Returns the keys
    /// that each had itself, which must have an effect.
    fn fill_in(&self, command: &str, table: &mut Table) -> Vec<WrittenStep> {
        let mut written = vec![self.fill_in_table(command, table, &[])];
        written.extend(passes_mut(table).map(|pass| match pass.as_table_mut() {
            Some(pass) => self.fill_in_table(&run_of(pass), pass, &OF_STEPS),
            None => WrittenStep::default(),
        }));
        written
    }

    /// Fills in the defaults of `command`, except keys that are `left_out`.
    fn fill_in_table(&self, command: &str, table: &mut Table, left_out: &[&str]) -> WrittenStep {
        let own = table.keys().cloned().collect();
        let defaults = self.defaults.get(command).into_iter().flatten();
        for (key, value) in defaults.filter(|(key, _)| !left_out.contains(&key.as_str())) {
            table.entry(key.clone()).or_insert_with(|| value.clone());
        }
        WrittenStep { command: command.to_owned(), own }
    }

    /// Replaces variables in all values of a step.
    fn replace(&mut self, table: &mut Table) -> Result<(), Mistake> {
        for (index, pass) in passes_mut(table).enumerate() {
            let Some(pass) = pass.as_table_mut() else { continue };
            self.replace_in(pass).map_err(|mistake| mistake.in_pass(index + 1))?;
        }
        self.replace_in(table)
    }

    /// Replaces variables in the values of one table.
    fn replace_in(&mut self, table: &mut Table) -> Result<(), Mistake> {
        table.iter_mut().try_for_each(|(key, value)| {
            let replaced = self.variables.replace(value);
            replaced
                .map_err(|error| Mistake::about([key.as_str()], error.about(&format!("`{key}`"))))
        })
    }

    /// The step of `table`, without keys that it has no use for and that another may have.
    fn parse(
        &mut self,
        mut table: Table,
        written: Vec<WrittenStep>,
        site: &Site<'_>,
    ) -> Result<Step> {
        drop_idle_text(&mut table, &written);
        // Where a variable has emptied a list of text, options about text aren't needed.
        let passes = passes_of(&table).filter_map(Value::as_table);
        let lacks_text = std::iter::once(&table).chain(passes).any(is_emptied);
        let own_may_pass = lacks_text || !self.chosen.is_empty();
        let keys = StepKeys { table, written, place: site.place.to_owned(), own_may_pass };
        let parsed = self.spare.parse(keys);
        let (step, passed) = parsed.map_err(|mistake| self.wrong(mistake, site))?;
        for passed in passed.into_iter().filter(|_| !lacks_text) {
            self.pass(passed, site);
        }
        Ok(step)
    }

    /// Records that a key was left out of the step at `site`.
    fn pass(&mut self, passed: LeftOutKey, site: &Site<'_>) {
        let error = match &passed.defaults {
            Some(command) => self.wrong_default(passed.mistake, command),
            None => self.wrong(passed.mistake, site),
        };
        self.spare.pass(passed.origin, error);
    }

    /// Checks the defaults that `step`, which runs `command` and is valid, overrides: they must be
    /// valid as well.
    fn check_overridden(
        &mut self,
        command: &str,
        mut step: Table,
        overridden: &[String],
    ) -> Result<()> {
        let defaults = self.defaults.get(command).into_iter().flatten();
        step.extend(
            defaults
                .map(|(key, value)| (key.clone(), value.clone()))
                .filter(|(key, _)| overridden.contains(key)),
        );
        let checked = self.replace(&mut step).and_then(|()| check_values(step, overridden));
        checked.map_err(|mistake| self.wrong_default(mistake, command))
    }

    /// The error for `mistake` in the step at `site`, with its place: in the step, or in the
    /// defaults that filled it in.
    fn wrong(&self, mistake: Mistake, site: &Site<'_>) -> Error {
        let place = match self.key_at(&mistake, site) {
            Some((line, Some(command))) => format!("line {line}, [defaults.{command}]"),
            Some((line, None)) => format!("line {line}, {}", site.named()),
            None => match self.source.line_of_step(site.place, mistake.pass) {
                Some(line) => format!("line {line}, {}", site.named()),
                None => site.named(),
            },
        };
        mistake.into_error().within(&place)
    }

    /// The line of the first key that `mistake` is about and that the recipe has for the step at
    /// `site`, and the command whose defaults have it, if the step itself doesn't.
    fn key_at<'s>(
        &self,
        mistake: &Mistake,
        site: &'s Site<'_>,
    ) -> Option<(usize, Option<&'s str>)> {
        mistake.keys.iter().find_map(|key| {
            if let Some(line) = self.source.line_of_key(site.place, mistake.pass, key) {
                return Some((line, None));
            }
            let mut commands = site.filled_by(mistake.pass);
            commands.find_map(|command| {
                Some((self.source.line_of_default(command, key)?, Some(command)))
            })
        })
    }

    /// The error for `mistake` about a default of `command` that a step doesn't use.
    fn wrong_default(&self, mistake: Mistake, command: &str) -> Error {
        let line = mistake.keys.iter().find_map(|key| self.source.line_of_default(command, key));
        let line = line.map_or(String::new(), |line| format!("line {line}, "));
        mistake.into_error().within(&format!("{line}[defaults.{command}]"))
    }

    /// Runs the steps of a block for every combination of its choices.
    fn block(&mut self, table: Table, place: &str) -> Result<()> {
        let block = Block::read(table).map_err(|mistake| {
            let command = "a block".to_owned();
            self.wrong(mistake, &Site { place, command, ..Site::default() })
        })?;
        self.combinations(&block.choices, &block.steps, place)
    }

    /// Runs `steps` for every combination of `choices`, the last one varying fastest.
    fn combinations(
        &mut self,
        choices: &[(String, Value)],
        steps: &[Table],
        place: &str,
    ) -> Result<()> {
        let Some(((choice, values), others)) = choices.split_first() else {
            return self.steps(steps, &format!("{place}."));
        };
        let in_choice =
            |error: Error| error.within(&format!("step {place} (a block): each.{choice}"));
        let settings = settings(choice, values, &mut self.variables).map_err(in_choice)?;
        for setting in &settings {
            for (name, value) in &setting.variables {
                self.variables.define(name, value.clone()).map_err(in_choice)?;
            }
            self.chosen.push(setting.shown.clone());
            self.combinations(others, steps, place)?;
            self.chosen.pop();
            setting.names().into_iter().for_each(|name| self.variables.undefine(name));
        }
        self.check_used(&settings).map_err(in_choice)
    }

    /// Refuses `settings` of a choice whose variables no step used.
    fn check_used(&mut self, settings: &[Setting]) -> Result<()> {
        let mut names = settings.iter().take(1).flat_map(Setting::names);
        match names.find(|name| !self.variables.was_used(name)) {
            Some(name) => {
                let what = format!("no step of the block uses ${{{name}}}");
                Err(usage(what, "use it in a step, or leave the choice out"))
            }
            None => Ok(()),
        }
    }
}

/// The command that `table` runs; empty where it names none.
fn run_of(table: &Table) -> String {
    table.get("run").and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// Drops keys about text from a step and its passes, where they read none.
fn drop_idle_text(table: &mut Table, written: &[WrittenStep]) {
    drop_idle(table, &written[0].own);
    for (pass, written) in passes_mut(table).zip(&written[1..]) {
        if let Some(pass) = pass.as_table_mut() {
            drop_idle(pass, &written.own);
        }
    }
}

/// Refuses values of the keys `overridden` in a step that has them from defaults, where a value is
/// wrong by itself. Conflicts with the step's other keys don't matter, since these defaults aren't
/// used there.
fn check_values(step: Table, overridden: &[String]) -> Result<(), Mistake> {
    let is_number = |key: &&String| step.get(*key).is_some_and(|v| v.is_integer() || v.is_float());
    let numbers: Vec<&String> = overridden.iter().filter(is_number).collect();
    let Err(mistake) = parse_step(step) else { return Ok(()) };
    let is_wrong = mistake.keys.first().is_some_and(|key| {
        let is_alone = mistake.keys.iter().all(|other| other == key);
        // A check that isn't about another key is about the size of the number.
        let is_out_of_range =
            is_alone && numbers.contains(&key) && mistake.error.idle_options().is_empty();
        overridden.contains(key) && (mistake.is_of_value || is_out_of_range)
    });
    if is_wrong { Err(mistake) } else { Ok(()) }
}
