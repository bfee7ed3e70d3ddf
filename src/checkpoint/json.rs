//! JSON objects whose names must all differ: where one is there twice, readers take either.

use std::{collections::BTreeMap, fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{Error, MapAccess, Visitor},
};

/// What a name may stand for.
pub(super) trait Field: Sized {
    /// Reads the value of `name`, which is next in `map`.
    fn read<'de, A: MapAccess<'de>>(name: &str, map: &mut A) -> Result<Self, A::Error>;
}

impl Field for String {
    fn read<'de, A: MapAccess<'de>>(_: &str, map: &mut A) -> Result<Self, A::Error> {
        map.next_value()
    }
}

/// An object; errors name the field that they are of.
pub(super) struct Object<F>(pub BTreeMap<String, F>);

impl<'de, F: Field> Deserialize<'de> for Object<F> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Fields(PhantomData))
    }
}

struct Fields<F>(PhantomData<F>);

impl<'de, F: Field> Visitor<'de> for Fields<F> {
    type Value = Object<F>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut fields = BTreeMap::new();
        while let Some(name) = map.next_key::<String>()? {
            let value = F::read(&name, &mut map).map_err(|error| A::Error::custom(format!("{name}: {error}")))?;
            if fields.contains_key(&name) {
                return Err(A::Error::custom(format!("{name} is there twice")));
            }
            fields.insert(name, value);
        }
        Ok(Object(fields))
    }
}
