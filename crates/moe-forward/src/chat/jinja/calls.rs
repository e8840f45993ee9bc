//! Calls: macros, loops, methods and the functions that transformers gives templates.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use super::ast::Macro;
use super::interpreter::Interpreter;
use super::scope::Scope;
use super::value::{Dict, Function, Items, Namespace, Text, Value, View};
use super::{ENTRY_BYTES, Fail, Outcome, attributes, strings};

/// Jinja2's sandbox allows for so many numbers in a range.
const MAX_RANGE: i128 = 100_000;

/// The arguments of a call.
#[derive(Default, Clone)]
pub(super) struct CallArgs {
    pub positional: Vec<Value>,
    pub named: Vec<(String, Value)>,
}

impl CallArgs {
    /// The arguments by the names of the parameters of `function`, in this order.
    pub fn bind<const N: usize>(
        self,
        function: &str,
        names: [&str; N],
    ) -> Outcome<[Option<Value>; N]> {
        if self.positional.len() > N {
            let given = self.positional.len();
            return Err(Fail::new(format!(
                "{function} takes at most {N} arguments, but {given} were given"
            )));
        }
        let mut bound = [const { None }; N];
        for (value, slot) in self.positional.into_iter().zip(&mut bound) {
            *slot = Some(value);
        }
        for (name, value) in self.named {
            match names.iter().position(|known| *known == name) {
                Some(at) if bound[at].is_none() => bound[at] = Some(value),
                Some(_) => {
                    return Err(Fail::new(format!(
                        "{function} got multiple values for argument '{name}'"
                    )));
                }
                None => {
                    return Err(Fail::new(format!(
                        "{function} got an unexpected keyword argument '{name}'"
                    )));
                }
            }
        }
        Ok(bound)
    }
}

/// An argument that must be there.
pub(super) fn required(value: Option<Value>, function: &str, name: &str) -> Outcome<Value> {
    value.ok_or_else(|| Fail::new(format!("{function} is missing its argument '{name}'")))
}

/// An argument that is an integer.
pub(super) fn integer(value: &Value, function: &str) -> Outcome<i128> {
    if let Value::Undefined(what) = value {
        return Err(Fail::new(&**what));
    }
    let what = || {
        Fail::new(format!(
            "{function}: '{}' object cannot be interpreted as an integer",
            value.type_name()
        ))
    };
    value.integer().ok_or_else(what)
}

/// An argument that is a text.
pub(super) fn text(value: &Value, function: &str) -> Outcome<Text> {
    match value {
        Value::Str(text) | Value::Markup(text) => Ok(text.clone()),
        Value::Undefined(what) => Err(Fail::new(&**what)),
        _ => Err(Fail::new(format!("{function}: a str is wanted, not '{}'", value.type_name()))),
    }
}

impl Interpreter {
    /// What `callee(args)` gives.
    pub fn call(&mut self, callee: &Value, args: CallArgs) -> Outcome<Value> {
        self.step(0)?;
        match callee {
            Value::Undefined(what) => Err(Fail::new(&**what)),
            Value::Macro(macro_) => self.call_macro(&macro_.0, &macro_.1, args),
            Value::Function(function) => self.call_function(*function, args),
            Value::Method(method) => self.call_method(&method.0, method.1, args),
            Value::Loop(state) => {
                let [items] = args.bind("loop", ["iterable"])?;
                let items = required(items, "loop", "iterable")?;
                self.call_loop(state, &items)
            }
            Value::Block(body) => {
                args.bind("a block", []).map(|[]| ())?;
                let scope = Scope::within(&self.globals);
                Ok(self.captured(body, &scope)?.into())
            }
            Value::Joiner(joiner) => {
                let used = joiner.1.replace(true);
                Ok(if used { Value::Str(joiner.0.clone()) } else { "".into() })
            }
            _ => Err(Fail::new(format!("'{}' object is not callable", callee.type_name()))),
        }
    }

    fn call_macro(
        &mut self,
        macro_: &Arc<Macro>,
        scope: &Rc<Scope>,
        mut args: CallArgs,
    ) -> Outcome<Value> {
        let inner = Scope::within(scope);
        let mut positional = std::mem::take(&mut args.positional).into_iter();
        let mut has_caller = false;
        for (name, default) in &macro_.params {
            has_caller |= &**name == "caller";
            let named = args.named.iter().position(|(known, _)| **known == **name);
            let value = match (positional.next(), named) {
                (Some(value), None) => value,
                (None, Some(at)) => args.named.remove(at).1,
                (Some(_), Some(_)) => {
                    return Err(Fail::new(format!(
                        "macro '{}' takes no keyword argument '{name}'",
                        macro_.name
                    )));
                }
                (None, None) => match default {
                    Some(default) => self.expr(default, &inner)?,
                    None => Value::undefined(format!("parameter '{name}' was not provided")),
                },
            };
            inner.set(name, value);
        }
        if macro_.takes_caller && !has_caller {
            let at = args.named.iter().position(|(name, _)| name == "caller");
            let caller = at.map(|at| args.named.remove(at).1);
            inner.set(
                &"caller".into(),
                caller.unwrap_or_else(|| Value::undefined("No caller defined")),
            );
        }
        let rest: Vec<Value> = positional.collect();
        if macro_.takes_kwargs {
            let mut kwargs = Dict::default();
            for (name, value) in args.named.drain(..) {
                kwargs.insert(name.into(), value);
            }
            inner.set(&"kwargs".into(), kwargs.into_value());
        }
        if let Some((name, _)) = args.named.first() {
            return Err(Fail::new(format!(
                "macro '{}' takes no keyword argument '{name}'",
                macro_.name
            )));
        }
        if macro_.takes_varargs {
            inner.set(&"varargs".into(), Value::Tuple(Items::new(rest)));
        } else if !rest.is_empty() {
            let most = macro_.params.len();
            return Err(Fail::new(format!(
                "macro '{}' takes not more than {most} argument(s)",
                macro_.name
            )));
        }
        Ok(self.captured(&macro_.body, &inner)?.into())
    }

    fn call_function(&mut self, function: Function, args: CallArgs) -> Outcome<Value> {
        match function {
            Function::Range => range(args),
            Function::Dict => {
                let copied = args.positional.iter().filter_map(Value::length).sum::<usize>()
                    + args.named.len();
                self.step(copied * ENTRY_BYTES)?;
                Ok(dict(args)?.into_value())
            }
            Function::Namespace => {
                let namespace = Namespace::default();
                for (name, value) in dict(args)?.entries() {
                    if name.text().is_some_and(|name| name.starts_with('_')) {
                        return Err(Fail::new(
                            "a namespace can't have attributes that begin with an underscore",
                        ));
                    }
                    namespace.set(name.clone(), value.clone());
                }
                Ok(Value::Namespace(Rc::new(namespace)))
            }
            Function::Cycler if args.positional.is_empty() => {
                Err(Fail::new("at least one item has to be provided"))
            }
            Function::Cycler => {
                Ok(Value::Cycler(Rc::new((Items::new(args.positional), Cell::new(0)))))
            }
            Function::Joiner => {
                let [separator] = args.bind("joiner", ["sep"])?;
                let separator = text(&separator.unwrap_or_else(|| ", ".into()), "joiner")?;
                Ok(Value::Joiner(Rc::new((separator, Cell::new(false)))))
            }
            Function::Lipsum => {
                Err(Fail::new("lipsum gives another text each time, and is not supported"))
            }
            Function::RaiseException => {
                let [message] = args.bind("raise_exception", ["message"])?;
                Err(Fail::new(required(message, "raise_exception", "message")?.to_text()?))
            }
            Function::StrftimeNow => {
                let [format] = args.bind("strftime_now", ["format"])?;
                let format = text(&required(format, "strftime_now", "format")?, "strftime_now")?;
                self.step(format.len() * 16)?;
                self.present.write(&format).map(Value::from).map_err(Fail::new)
            }
        }
    }

    fn call_method(
        &mut self,
        object: &Value,
        method: &'static str,
        args: CallArgs,
    ) -> Outcome<Value> {
        match object {
            Value::Str(text) => strings::call(self, text, method, args),
            Value::Dict(dict) => {
                let entries = dict.entries();
                match method {
                    "get" => {
                        let [key, default] = args.bind("get", ["key", "default"])?;
                        let found = dict.get(&required(key, "get", "key")?).cloned();
                        return Ok(found.or(default).unwrap_or(Value::None));
                    }
                    "copy" => return args.bind("copy", []).map(|[]| object.clone()),
                    _ => args.bind(method, []).map(|[]| ())?,
                }
                self.step(entries.len() * size_of::<Value>())?;
                let pair = |(key, value): &(Value, Value)| {
                    Value::Tuple(Items::new(vec![key.clone(), value.clone()]))
                };
                Ok(match method {
                    "keys" => Value::View(
                        View::Keys,
                        Items::new(entries.iter().map(|(key, _)| key.clone()).collect()),
                    ),
                    "values" => Value::View(
                        View::Values,
                        Items::new(entries.iter().map(|(_, value)| value.clone()).collect()),
                    ),
                    _ => Value::View(View::Items, Items::new(entries.iter().map(pair).collect())),
                })
            }
            Value::Loop(state) if method == "cycle" => {
                let Some(Value::Int(index)) = state.attribute("index0") else {
                    return Ok(Value::None);
                };
                let count = args.positional.len() as i128;
                if count == 0 {
                    return Err(Fail::new("no items for cycling given"));
                }
                Ok(args.positional[(index % count) as usize].clone())
            }
            Value::Loop(state) => {
                let mut last = state.changed.borrow_mut();
                let is_same = last.as_ref().is_some_and(|last| {
                    last.len() == args.positional.len()
                        && last.iter().zip(&args.positional).all(|(a, b)| a.equals(b))
                });
                *last = Some(args.positional);
                Ok(Value::Bool(!is_same))
            }
            Value::Cycler(cycler) => {
                let at = cycler.1.get();
                if method == "reset" {
                    cycler.1.set(0);
                    return Ok(Value::None);
                }
                cycler.1.set((at + 1) % cycler.0.len());
                Ok(cycler.0[at].clone())
            }
            _ => self.call_list_method(object, method, args),
        }
    }

    fn call_list_method(
        &mut self,
        object: &Value,
        method: &'static str,
        args: CallArgs,
    ) -> Outcome<Value> {
        if method == "copy" {
            return args.bind("copy", []).map(|[]| object.clone());
        }
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

fn range(args: CallArgs) -> Outcome<Value> {
    let numbers: Vec<i128> =
        args.positional.iter().map(|arg| integer(arg, "range")).collect::<Outcome<_>>()?;
    let (start, stop, step) = match (&numbers[..], args.named.is_empty()) {
        ([stop], true) => (0, *stop, 1),
        ([start, stop], true) => (*start, *stop, 1),
        ([start, stop, step], true) => (*start, *stop, *step),
        _ => return Err(Fail::new("range takes one to three numbers")),
    };
    if step == 0 {
        return Err(Fail::new("range() arg 3 must not be zero"));
    }
    let limit = i128::from(i64::MAX);
    if [start, stop, step].iter().any(|number| !(-limit..=limit).contains(number)) {
        return Err(Fail::new("Range too big."));
    }
    let length =
        if step > 0 { (stop - start + step - 1) / step } else { (start - stop - step - 1) / -step };
    let is_empty = (step > 0 && stop <= start) || (step < 0 && stop >= start);
    let length = if is_empty { 0 } else { length };
    if length > MAX_RANGE {
        return Err(Fail::new(format!(
            "Range too big. The sandbox blocks ranges larger than {MAX_RANGE}."
        )));
    }
    Ok(Value::Range { start, step, length: length as usize })
}

fn dict(args: CallArgs) -> Outcome<Dict> {
    let mut dict = Dict::default();
    match &args.positional[..] {
        [] => {}
        [Value::Dict(from)] => {
            from.entries().iter().for_each(|(key, value)| dict.insert(key.clone(), value.clone()))
        }
        [pairs] => {
            for pair in pairs.iterate()? {
                let [key, value]: [Value; 2] = pair
                    .iterate()?
                    .try_into()
                    .map_err(|_| Fail::new("dict() wants pairs of a key and a value"))?;
                dict.insert(key, value);
            }
        }
        _ => return Err(Fail::new("dict expected at most 1 argument")),
    }
    for (name, value) in args.named {
        dict.insert(name.into(), value);
    }
    Ok(dict)
}
