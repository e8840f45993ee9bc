//! Calls of macros, loops, methods and the functions that transformers gives templates.

use std::cell::Cell;
use std::rc::Rc;

use super::args::{CallArgs, integer, required, required_text, text_or};
use super::ast::Macro;
use super::interpreter::Interpreter;
use super::scope::Scope;
use super::value::{Dict, Function, Items, Namespace, Value};
use super::{ENTRY_BYTES, Fail, Fallible};

/// Maximum length of a range in Jinja2's sandbox.
const MAX_RANGE: i128 = 100_000;

impl Interpreter {
    /// Calls `callee(args)`.
    pub fn call(&mut self, callee: &Value, args: CallArgs) -> Fallible<Value> {
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
                args.none("a block")?;
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
        macro_: &Macro,
        scope: &Rc<Scope>,
        mut args: CallArgs,
    ) -> Fallible<Value> {
        let inner = Scope::within(scope);
        let mut positional = std::mem::take(&mut args.positional).into_iter();
        for (name, default) in &macro_.params {
            let value = match (positional.next(), args.take_named(name), default) {
                (Some(value), None, _) | (None, Some(value), _) => value,
                (Some(_), Some(_), _) => return Err(unknown_keyword(macro_, name)),
                (None, None, Some(default)) => self.expr(default, &inner)?,
                (None, None, None) => {
                    Value::undefined(format!("parameter '{name}' was not provided"))
                }
            };
            inner.set(name, value);
        }
        args.positional = positional.collect();
        set_beside_params(macro_, args, &inner)?;
        Ok(self.captured(&macro_.body, &inner)?.into())
    }

    fn call_function(&mut self, function: Function, args: CallArgs) -> Fallible<Value> {
        match function {
            Function::Range => range(args),
            Function::Dict => self.dict_of(args),
            Function::Namespace => namespace(args),
            Function::Cycler => cycler(args),
            Function::Joiner => joiner(args),
            Function::Lipsum => {
                Err(Fail::new("lipsum gives another text each time, and is not supported"))
            }
            Function::RaiseException => {
                let [message] = args.bind("raise_exception", ["message"])?;
                Err(Fail::new(required(message, "raise_exception", "message")?.to_text()?))
            }
            Function::StrftimeNow => self.strftime_now(args),
        }
    }

    fn dict_of(&mut self, args: CallArgs) -> Fallible<Value> {
        let copied = args.positional.iter().filter_map(Value::length).sum::<usize>();
        self.step((copied + args.named.len()) * ENTRY_BYTES)?;
        Ok(dict(args)?.into_value())
    }

    fn strftime_now(&mut self, args: CallArgs) -> Fallible<Value> {
        let [format] = args.bind("strftime_now", ["format"])?;
        let format = required_text(format, "strftime_now", "format")?;
        self.step(format.len() * 16)?;
        self.present.write(&format).map(Value::from).map_err(Fail::new)
    }
}

/// Sets the variables of a macro's body that aren't parameters: `caller`, `kwargs` and `varargs`,
/// from the arguments that no parameter took.
fn set_beside_params(macro_: &Macro, mut args: CallArgs, scope: &Scope) -> Fallible<()> {
    let has_caller = macro_.params.iter().any(|(name, _)| &**name == "caller");
    if macro_.takes_caller && !has_caller {
        let caller = args.take_named("caller");
        let caller = caller.unwrap_or_else(|| Value::undefined("No caller defined"));
        scope.set(&"caller".into(), caller);
    }
    if macro_.takes_kwargs {
        let mut kwargs = Dict::default();
        for (name, value) in args.named.drain(..) {
            kwargs.insert(name.into(), value);
        }
        scope.set(&"kwargs".into(), kwargs.into_value());
    }
    if let Some((name, _)) = args.named.first() {
        return Err(unknown_keyword(macro_, name));
    }
    if macro_.takes_varargs {
        scope.set(&"varargs".into(), Value::Tuple(Items::new(args.positional)));
    } else if !args.positional.is_empty() {
        let (name, most) = (&macro_.name, macro_.params.len());
        return Err(Fail::new(format!("macro '{name}' takes not more than {most} argument(s)")));
    }
    Ok(())
}

fn unknown_keyword(macro_: &Macro, name: &str) -> Fail {
    Fail::new(format!("macro '{}' takes no keyword argument '{name}'", macro_.name))
}

fn namespace(args: CallArgs) -> Fallible<Value> {
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

fn cycler(args: CallArgs) -> Fallible<Value> {
    if args.positional.is_empty() {
        return Err(Fail::new("at least one item has to be provided"));
    }
    Ok(Value::Cycler(Rc::new((Items::new(args.positional), Cell::new(0)))))
}

fn joiner(args: CallArgs) -> Fallible<Value> {
    let [separator] = args.bind("joiner", ["sep"])?;
    let separator = text_or(", ", separator, "joiner")?;
    Ok(Value::Joiner(Rc::new((separator, Cell::new(false)))))
}

fn range(args: CallArgs) -> Fallible<Value> {
    let [start, stop, step] = range_bounds(&args)?;
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

/// Returns the start, stop and step of a range.
fn range_bounds(args: &CallArgs) -> Fallible<[i128; 3]> {
    let numbers: Vec<i128> =
        args.positional.iter().map(|arg| integer(arg, "range")).collect::<Fallible<_>>()?;
    match (&numbers[..], args.named.is_empty()) {
        ([stop], true) => Ok([0, *stop, 1]),
        ([start, stop], true) => Ok([*start, *stop, 1]),
        ([start, stop, step], true) => Ok([*start, *stop, *step]),
        _ => Err(Fail::new("range takes one to three numbers")),
    }
}

fn dict(args: CallArgs) -> Fallible<Dict> {
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
