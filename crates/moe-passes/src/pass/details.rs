//! Details that only a pass knows of a layer that it converted.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use moe_checkpoint::json;
use moe_math::figures::Checked;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

/// The details that a pass leaves of each layer: figures that its report shows. Records hold them
/// as [`Details`], so that they don't depend on any pass; a reader asks for the type that it knows.
/// A pass names its type in its row of [`crate::PASSES`]. The type is a struct; floats in it that
/// may be infinite or NaN are read by [`moe_checkpoint::or_infinite`].
pub trait LayerDetails:
    Serialize + DeserializeOwned + JsonSchema + Any + Clone + Send + Sync
{
    /// The word that tells these details from those of other passes, as `kind` in JSON.
    const KIND: &'static str;

    /// Refuses figures that contradict each other, which the pass doesn't give: whoever reads them
    /// may then rely on them.
    ///
    /// # Errors
    /// What is wrong, in a sentence that begins with the key.
    fn check(&self) -> Checked;
}

/// The key that [`LayerDetails::KIND`] is stored under.
const KIND_KEY: &str = "kind";

/// Details of any pass: in JSON an object, with the key `kind`.
#[derive(Clone)]
pub struct Details(Held);

#[derive(Clone)]
enum Held {
    /// The value that the pass gave. It keeps floats that JSON can't write.
    Typed(Arc<dyn AnyDetails>),
    /// The object that was read from JSON.
    Json(Map<String, Value>),
}

/// A type-erased [`LayerDetails`].
trait AnyDetails: Send + Sync {
    fn as_any(&self) -> &dyn Any;
    fn to_json(&self) -> Map<String, Value>;
}

impl<T: LayerDetails> AnyDetails for T {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn to_json(&self) -> Map<String, Value> {
        let kind = Map::from_iter([(KIND_KEY.to_owned(), T::KIND.into())]);
        let fields = serde_json::to_value(self).expect("plain data serialises");
        kind.into_iter().chain(fields.as_object().cloned().unwrap_or_default()).collect()
    }
}

impl Details {
    /// Wraps the `details` of a pass.
    pub fn of<T: LayerDetails>(details: T) -> Self {
        Self(Held::Typed(Arc::new(details)))
    }

    /// The details as a `T`; None where they are of another kind.
    pub fn read<T: LayerDetails>(&self) -> Option<T> {
        match &self.0 {
            Held::Typed(details) => details.as_any().downcast_ref().cloned(),
            Held::Json(fields) if fields.get(KIND_KEY)?.as_str()? == T::KIND => {
                T::deserialize(fields).ok()
            }
            Held::Json(_) => None,
        }
    }

    /// Refuses details that aren't a `T`, or contradict themselves.
    fn check<T: LayerDetails>(&self) -> Checked {
        let fields = match &self.0 {
            Held::Typed(_) => return self.read::<T>().map_or(Ok(()), |details| details.check()),
            Held::Json(fields) => fields,
        };
        match fields.get(KIND_KEY).and_then(Value::as_str) {
            Some(kind) if kind == T::KIND => json::of_object::<T>(fields)?.check(),
            Some(kind) => Err(format!("{KIND_KEY} is {kind:?}, where {:?} is expected", T::KIND)),
            None => Err(format!("{KIND_KEY} is missing")),
        }
    }

    fn to_json(&self) -> Map<String, Value> {
        match &self.0 {
            Held::Typed(details) => details.to_json(),
            Held::Json(fields) => fields.clone(),
        }
    }
}

impl PartialEq for Details {
    fn eq(&self, other: &Self) -> bool {
        self.to_json() == other.to_json()
    }
}

impl fmt::Debug for Details {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_json().fmt(f)
    }
}

impl Serialize for Details {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.to_json().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Details {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Map::deserialize(deserializer).map(|fields| Self(Held::Json(fields)))
    }
}

/// The type of a pass's details, for code that reads and describes receipts.
#[derive(Debug, Clone, Copy)]
pub struct DetailsType {
    /// [`LayerDetails::KIND`].
    pub kind: &'static str,
    check: fn(&Details) -> Checked,
    schema: fn(&mut SchemaGenerator) -> Schema,
}

impl DetailsType {
    /// The type `T`.
    pub const fn of<T: LayerDetails>() -> Self {
        Self {
            kind: T::KIND,
            check: Details::check::<T>,
            schema: SchemaGenerator::subschema_for::<T>,
        }
    }

    /// Refuses `details` that aren't of this type, or contradict themselves.
    ///
    /// # Errors
    /// What is wrong, in a sentence that begins with the key.
    pub fn check(&self, details: &Details) -> Checked {
        (self.check)(details)
    }

    /// The JSON Schema of such details, `kind` apart.
    pub fn schema(&self, generator: &mut SchemaGenerator) -> Schema {
        (self.schema)(generator)
    }
}
