//! Python's values. Strings and lists register their size, so that the memory of a template is
//! bounded.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::ops::Deref;
use std::rc::Rc;

use super::ast::{Body, Macro, TemplateBlocks};
use super::held::{Charge, depth_of, room};
use super::scope::{LoopState, Scope};
use super::{Fail, Fallible};

/// Overhead of a string in bytes, in addition to its characters.
const TEXT_BYTES: usize = 64;

/// A shared, immutable string.
#[derive(Clone)]
pub(super) struct Str(Rc<(String, Charge)>);

impl Str {
    pub fn new(text: impl Into<String>) -> Self {
        let text = text.into();
        let charge = Charge::new(text.len() + TEXT_BYTES);
        Self(Rc::new((text, charge)))
    }
}

impl Deref for Str {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0.0
    }
}

/// A shared immutable list: transformers' sandbox forbids templates to change lists.
#[derive(Clone)]
pub(super) struct Items(Rc<(Vec<Value>, Charge, usize)>);

impl Items {
    pub fn new(items: Vec<Value>) -> Self {
        let charge = Charge::new(items.len() * size_of::<Value>());
        let depth = depth_of(items.iter());
        Self(Rc::new((items, charge, depth)))
    }

    pub fn is(&self, other: &Self) -> bool {
        Rc::ptr_eq(&self.0, &other.0)
    }
}

impl Deref for Items {
    type Target = [Value];

    fn deref(&self) -> &[Value] {
        &self.0.0
    }
}

/// A dictionary in insertion order.
#[derive(Default)]
pub(super) struct Dict {
    entries: Vec<(Value, Value)>,
    /// Positions of string keys in `entries`; filled once there are more than [`MAX_UNINDEXED`]
    /// entries.
    index: HashMap<String, usize>,
}

const MAX_UNINDEXED: usize = 8;

impl Dict {
    pub fn entries(&self) -> &[(Value, Value)] {
        &self.entries
    }

    fn find(&self, key: &Value) -> Option<usize> {
        if let (Value::Str(text), true) = (key, self.entries.len() > MAX_UNINDEXED) {
            return self.index.get(&**text).copied();
        }
        self.entries.iter().position(|(known, _)| known.equals(key))
    }

    pub fn get(&self, key: &Value) -> Option<&Value> {
        self.find(key).map(|at| &self.entries[at].1)
    }

    pub fn get_text(&self, key: &str) -> Option<&Value> {
        if self.entries.len() > MAX_UNINDEXED {
            return self.index.get(key).map(|at| &self.entries[*at].1);
        }
        let is_key =
            |(known, _): &&(Value, Value)| matches!(known, Value::Str(known) if &**known == key);
        self.entries.iter().find(is_key).map(|(_, value)| value)
    }

    pub fn insert(&mut self, key: Value, value: Value) {
        if let Some(at) = self.find(&key) {
            self.entries[at].1 = value;
            return;
        }
        self.entries.push((key, value));
        let indexed = if self.entries.len() == MAX_UNINDEXED + 1 {
            0
        } else {
            MAX_UNINDEXED.max(self.entries.len() - 1)
        };
        for at in indexed..self.entries.len() {
            if let (Value::Str(key), true) =
                (&self.entries[at].0, self.entries.len() > MAX_UNINDEXED)
            {
                self.index.insert(key.to_string(), at);
            }
        }
    }

    /// Converts the dictionary to a value that is charged for its memory.
    pub fn into_value(self) -> Value {
        let charge = Charge::new(self.entries.len() * 2 * size_of::<Value>());
        let depth = depth_of(self.entries.iter().map(|(_, value)| value));
        Value::Dict(Rc::new(CountedDict { dict: self, depth, _charge: charge }))
    }
}

/// A dictionary with the memory that it is charged for and its nesting depth.
pub(super) struct CountedDict {
    dict: Dict,
    depth: usize,
    _charge: Charge,
}

impl Deref for CountedDict {
    type Target = Dict;

    fn deref(&self) -> &Dict {
        &self.dict
    }
}

/// Which view of a dictionary: the result of `keys()`, `values()` or `items()`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum View {
    Keys,
    Values,
    Items,
}

/// A function that templates can call by name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Function {
    Range,
    Dict,
    Namespace,
    Cycler,
    Joiner,
    Lipsum,
    RaiseException,
    StrftimeNow,
}

/// A dictionary that templates can change.
#[derive(Default)]
pub(super) struct Namespace {
    pub fields: RefCell<Dict>,
    depth: Cell<usize>,
}

impl Namespace {
    pub fn set(&self, name: Value, value: Value) {
        self.depth.set(depth_of([&value].into_iter()).max(self.depth.get()));
        self.fields.borrow_mut().insert(name, value);
    }
}

#[derive(Clone)]
pub(super) enum Value {
    /// An undefined value, with Jinja2's error message for its use.
    Undefined(Rc<str>),
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Str(Str),
    /// An escaped string, or one marked as safe (Markup).
    Markup(Str),
    List(Items),
    Tuple(Items),
    Dict(Rc<CountedDict>),
    View(View, Items),
    Range {
        start: i128,
        step: i128,
        length: usize,
    },
    /// A generator, as most filters return.
    Generator(Rc<RefCell<VecDeque<Value>>>),
    Namespace(Rc<Namespace>),
    Macro(Rc<(std::sync::Arc<Macro>, Rc<Scope>)>),
    Loop(Rc<LoopState>),
    Method(Rc<(Value, &'static str)>),
    Function(Function),
    Cycler(Rc<(Items, Cell<usize>)>),
    Joiner(Rc<(Str, Cell<bool>)>),
    /// Jinja2's `self`.
    Blocks(TemplateBlocks),
    /// A block that can be called.
    Block(std::sync::Arc<Body>),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Str(Str::new(text))
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Str(Str::new(text))
    }
}

impl From<Vec<Value>> for Value {
    fn from(items: Vec<Value>) -> Self {
        Self::List(Items::new(items))
    }
}

impl Value {
    pub fn undefined(what: impl Into<Rc<str>>) -> Self {
        Self::Undefined(what.into())
    }

    pub fn generator(items: impl IntoIterator<Item = Value>) -> Self {
        Self::Generator(Rc::new(RefCell::new(items.into_iter().collect())))
    }

    pub fn depth(&self) -> usize {
        match self {
            Self::List(items) | Self::Tuple(items) | Self::View(_, items) => items.0.2,
            Self::Dict(dict) => dict.depth,
            Self::Namespace(namespace) => namespace.depth.get(),
            Self::Generator(items) => items.borrow().iter().map(Self::depth).max().unwrap_or(0) + 1,
            Self::Method(method) => method.0.depth() + 1,
            Self::Cycler(cycler) => cycler.0.0.2 + 1,
            _ => 0,
        }
    }

    pub fn is_undefined(&self) -> bool {
        matches!(self, Self::Undefined(_))
    }

    /// Returns the characters of a string, escaped or not; None for other values.
    pub fn text(&self) -> Option<&str> {
        match self {
            Self::Str(text) | Self::Markup(text) => Some(text),
            _ => None,
        }
    }

    /// Returns Python's name of the type.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Undefined(_) => "Undefined",
            Self::None => "NoneType",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Float(_) => "float",
            Self::Str(_) => "str",
            Self::Markup(_) => "Markup",
            Self::List(_) => "list",
            Self::Tuple(_) => "tuple",
            Self::Dict(_) => "dict",
            Self::View(View::Keys, _) => "dict_keys",
            Self::View(View::Values, _) => "dict_values",
            Self::View(View::Items, _) => "dict_items",
            Self::Range { .. } => "range",
            Self::Generator(_) => "generator",
            Self::Namespace(_) => "Namespace",
            Self::Macro(_) => "Macro",
            Self::Loop(_) => "LoopContext",
            Self::Method(_) => "builtin_function_or_method",
            Self::Function(_) => "function",
            Self::Cycler(_) => "Cycler",
            Self::Joiner(_) => "Joiner",
            Self::Blocks(_) => "TemplateReference",
            Self::Block(_) => "BlockReference",
        }
    }

    pub fn is_true(&self) -> bool {
        match self {
            Self::Undefined(_) | Self::None => false,
            Self::Bool(value) => *value,
            Self::Int(value) => *value != 0,
            Self::Float(value) => *value != 0.0,
            Self::Str(text) | Self::Markup(text) => !text.is_empty(),
            _ => self.length().is_none_or(|length| length > 0),
        }
    }

    /// `len(self)`; None for values without a length.
    pub fn length(&self) -> Option<usize> {
        match self {
            Self::Undefined(_) => Some(0),
            Self::Str(text) | Self::Markup(text) => Some(text.chars().count()),
            Self::List(items) | Self::Tuple(items) | Self::View(_, items) => Some(items.len()),
            Self::Dict(dict) => Some(dict.entries().len()),
            Self::Range { length, .. } => Some(*length),
            Self::Loop(state) => Some(state.length()),
            _ => None,
        }
    }

    /// Returns the values of a loop over this; a generator is drained.
    pub fn iterate(&self) -> Fallible<Vec<Value>> {
        let each = if self.text().is_some() {
            size_of::<Value>() + TEXT_BYTES
        } else {
            size_of::<Value>()
        };
        room(self.length().unwrap_or(0).saturating_mul(each))?;
        Ok(match self {
            Self::Undefined(_) => Vec::new(),
            Self::Str(text) | Self::Markup(text) => {
                text.chars().map(|c| Value::from(c.to_string())).collect()
            }
            Self::List(items) | Self::Tuple(items) | Self::View(_, items) => items.to_vec(),
            Self::Dict(dict) => dict.entries().iter().map(|(key, _)| key.clone()).collect(),
            Self::Range { start, step, length } => {
                (0..*length as i128).map(|index| Self::Int(start + step * index)).collect()
            }
            Self::Generator(items) => items.borrow_mut().drain(..).collect(),
            _ => return Err(Fail::new(format!("'{}' object is not iterable", self.type_name()))),
        })
    }

    /// Converts a number to a float; None for other values.
    pub fn number(&self) -> Option<f64> {
        match self {
            Self::Bool(value) => Some(f64::from(u8::from(*value))),
            Self::Int(value) => Some(*value as f64),
            Self::Float(value) => Some(*value),
            _ => None,
        }
    }

    /// Converts a number to an integer; None for values that Python doesn't treat as integers.
    pub fn integer(&self) -> Option<i128> {
        match self {
            Self::Bool(value) => Some(i128::from(*value)),
            Self::Int(value) => Some(*value),
            _ => None,
        }
    }
}
