//! Methods of dictionaries, lists, loops and cyclers; string methods are in `strings`.

use super::args::{CallArgs, required};
use super::interpreter::Interpreter;
use super::scope::LoopState;
use super::sequences::pair;
use super::value::{Dict, Items, Value, View};
use super::{Fail, Fallible, attributes, strings};

impl Interpreter {
    /// Calls `object.method(args)`.
    pub fn call_method(
        &mut self,
        object: &Value,
        method: &'static str,
        args: CallArgs,
    ) -> Fallible<Value> {
        match object {
            Value::Str(text) => strings::call(self, text, method, args),
            Value::Dict(dict) => match method {
                "get" => get(dict, args),
                "copy" => args.none("copy").map(|()| object.clone()),
                _ => self.view(dict, method, args),
            },
            Value::Loop(state) if method == "cycle" => cycle(state, &args),
            Value::Loop(state) => Ok(Value::Bool(changed(state, args))),
            Value::Cycler(cycler) if method == "reset" => {
                cycler.1.set(0);
                Ok(Value::None)
            }
            Value::Cycler(cycler) => {
                let at = cycler.1.get();
                cycler.1.set((at + 1) % cycler.0.len());
                Ok(cycler.0[at].clone())
            }
            _ if method == "copy" => args.none("copy").map(|()| object.clone()),
            _ => self.count_or_index(object, method, args),
        }
    }

    /// Returns the keys, values or items of a dictionary.
    fn view(&mut self, dict: &Dict, method: &str, args: CallArgs) -> Fallible<Value> {
        args.none(method)?;
        self.step(dict.entries().len() * size_of::<Value>())?;
        let entries = dict.entries().iter();
        let (view, items): (View, Vec<Value>) = match method {
            "keys" => (View::Keys, entries.map(|(key, _)| key.clone()).collect()),
            "values" => (View::Values, entries.map(|(_, value)| value.clone()).collect()),
            _ => (View::Items, entries.map(pair).collect()),
        };
        Ok(Value::View(view, Items::new(items)))
    }

    /// `list.count` and `list.index`.
    fn count_or_index(&mut self, object: &Value, method: &str, args: CallArgs) -> Fallible<Value> {
        let items = object.iterate()?;
        self.step(items.len() * size_of::<Value>())?;
        if method == "count" {
            let [value] = args.bind("count", ["value"])?;
            let value = required(value, "count", "value")?;
            return Ok(Value::Int(items.iter().filter(|item| item.equals(&value)).count() as i128));
        }
        let [value, start, stop] = args.bind("index", ["value", "start", "stop"])?;
        let value = required(value, "index", "value")?;
        let bounds = [start.unwrap_or(Value::Int(0)), stop.unwrap_or(Value::None), Value::None];
        let places: Vec<Value> = (0..items.len() as i128).map(Value::Int).collect();
        let within = attributes::slice(&places.into(), &bounds)?.iterate()?;
        let found = within.into_iter().find(|at| {
            at.integer()
                .and_then(|at| items.get(usize::try_from(at).ok()?))
                .is_some_and(|item| item.equals(&value))
        });
        found.ok_or_else(|| Fail::new("the value is not in the list"))
    }
}

fn get(dict: &Dict, args: CallArgs) -> Fallible<Value> {
    let [key, default] = args.bind("get", ["key", "default"])?;
    let found = dict.get(&required(key, "get", "key")?).cloned();
    Ok(found.or(default).unwrap_or(Value::None))
}

/// `loop.cycle(…)`: returns the argument for the current iteration.
fn cycle(state: &LoopState, args: &CallArgs) -> Fallible<Value> {
    let Some(Value::Int(index)) = state.attribute("index0") else { return Ok(Value::None) };
    let count = args.positional.len() as i128;
    if count == 0 {
        return Err(Fail::new("no items for cycling given"));
    }
    Ok(args.positional[(index % count) as usize].clone())
}

/// `loop.changed(…)`: whether the arguments differ from those of the previous call.
fn changed(state: &LoopState, args: CallArgs) -> bool {
    let mut last = state.changed.borrow_mut();
    let is_same = last.as_ref().is_some_and(|last| {
        last.len() == args.positional.len()
            && last.iter().zip(&args.positional).all(|(a, b)| a.equals(b))
    });
    *last = Some(args.positional);
    !is_same
}
