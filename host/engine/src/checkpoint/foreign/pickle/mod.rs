//! Reads Python pickles without executing them.
//!
//! A pickle is a program for a small stack machine. This one knows numbers, texts and containers. A class is its name, a call
//! of one is a record of the call (`Object`), never a call: the reader of the result decides which names it understands. A
//! pickle that names a function of the system or of the interpreter is refused as what it is.
//!
//! Memory is bounded by the size of the file that the pickle came in, whatever it says of itself.

use std::collections::HashMap;

mod machine;
pub(super) mod writer;

use machine::Machine;

/// A value's place in its [`Pickle`].
pub type Ref = u32;

/// A value; what is inside others is named by its place, since values may be shared.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// `None`.
    None,
    /// `True` or `False`.
    Bool(bool),
    /// A whole number; one of more than 64 bits is `f64::INFINITY` as a [`Value::Float`].
    Int(i64),
    /// A number.
    Float(f64),
    /// A text.
    Text(String),
    /// Bytes.
    Bytes(Vec<u8>),
    /// A list, or a set.
    List(Vec<Ref>),
    /// A tuple.
    Tuple(Vec<Ref>),
    /// Keys and values in order.
    Dict(Vec<(Ref, Ref)>),
    /// `MODULE.NAME`.
    Class(String),
    /// What a class was called with, and the state that was given to the result.
    Object {
        /// The class or function.
        class: Ref,
        /// The arguments, a tuple.
        args: Ref,
        /// What was set afterwards, if anything.
        state: Option<Ref>,
    },
    /// What the file keeps outside of the pickle; its name, as torch has it.
    Outside(Ref),
}

/// A pickle's values.
#[derive(Debug)]
pub struct Pickle {
    values: Vec<Value>,
    /// The value that the pickle stands for.
    pub root: Ref,
}

type Read<T> = Result<T, String>;

impl Pickle {
    /// Reads a pickle that came in a file of `size` bytes. An error says what is wrong with it.
    pub fn read(bytes: &[u8], size: usize) -> Read<Self> {
        let mut machine = Machine::new(bytes, 6 * size.max(bytes.len()) + (1 << 16));
        let root =
            machine.run().map_err(|why| format!("byte {} of its pickle: {why}", machine.at))?;
        Ok(Self { values: machine.values, root })
    }

    /// The value at a place.
    pub fn get(&self, place: Ref) -> &Value {
        self.values.get(place as usize).unwrap_or(&Value::None)
    }

    /// The value of a key in a dictionary, or in the state of an object.
    pub fn item(&self, place: Ref, key: &str) -> Option<Ref> {
        let pairs = match self.get(place) {
            Value::Dict(pairs) => pairs,
            Value::Object { state: Some(state), .. } => match self.get(*state) {
                Value::Dict(pairs) => pairs,
                _ => return None,
            },
            _ => return None,
        };
        let found =
            pairs.iter().rev().find(|(k, _)| matches!(self.get(*k), Value::Text(t) if t == key));
        found.map(|(_, value)| *value)
    }

    /// The value under keys inside each other.
    pub fn path(&self, keys: &[&str]) -> Option<Ref> {
        keys.iter().try_fold(self.root, |place, key| self.item(place, key))
    }

    /// The pairs of a dictionary whose keys are texts.
    pub fn pairs(&self, place: Ref) -> Vec<(&str, Ref)> {
        let Value::Dict(pairs) = self.get(place) else { return Vec::new() };
        let text = |(key, value): &(Ref, Ref)| match self.get(*key) {
            Value::Text(text) => Some((text.as_str(), *value)),
            _ => None,
        };
        pairs.iter().filter_map(text).collect()
    }

    /// The values of a dictionary whose keys are whole numbers; of a key that is there twice the first.
    pub fn numbered(&self, place: Ref) -> HashMap<i64, Ref> {
        let mut all = HashMap::new();
        if let Value::Dict(pairs) = self.get(place) {
            for (key, value) in pairs {
                if let Some(number) = self.int(*key) {
                    all.entry(number).or_insert(*value);
                }
            }
        }
        all
    }

    /// The elements of a list or a tuple.
    pub fn elements(&self, place: Ref) -> &[Ref] {
        match self.get(place) {
            Value::List(list) | Value::Tuple(list) => list,
            _ => &[],
        }
    }

    /// A whole number.
    pub fn int(&self, place: Ref) -> Option<i64> {
        match self.get(place) {
            Value::Int(n) => Some(*n),
            _ => None,
        }
    }

    /// The name of the class that an object was made by.
    pub fn class(&self, place: Ref) -> Option<&str> {
        let Value::Object { class, .. } = self.get(place) else { return None };
        match self.get(*class) {
            Value::Class(name) => Some(name),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Read<Pickle> {
        Pickle::read(bytes, 1000)
    }

    #[test]
    fn plain_values_are_read() {
        // pickle.dumps({"a": [1, -2, 1.5, None, True], "b": ("x", 300)}, 2)
        let bytes = b"\x80\x02}q\x00(X\x01\x00\x00\x00aq\x01]q\x02(K\x01J\xfe\xff\xff\xffG?\xf8\x00\x00\x00\x00\x00\x00N\x88eX\x01\x00\x00\x00bq\x03X\x01\x00\x00\x00xq\x04M,\x01\x86q\x05u.";
        let pickle = read(bytes).unwrap();
        let list = pickle.path(&["a"]).unwrap();
        let values: Vec<&Value> = pickle.elements(list).iter().map(|e| pickle.get(*e)).collect();
        let expected =
            [Value::Int(1), Value::Int(-2), Value::Float(1.5), Value::None, Value::Bool(true)];
        assert_eq!(values, expected.iter().collect::<Vec<&Value>>());
        let tuple = pickle.path(&["b"]).unwrap();
        assert_eq!(pickle.int(pickle.elements(tuple)[1]), Some(300));
        // pickle.dumps(-(2 ** 40), 2): a long.
        let long = read(b"\x80\x02\x8a\x06\x00\x00\x00\x00\x00\xff.").unwrap();
        assert_eq!(long.int(long.root), Some(-(1 << 40)));
    }

    #[test]
    fn nothing_is_called() {
        // pickle.dumps of an object of a class that is not known here: a record.
        let known = read(b"\x80\x02csome.module\nThing\n)\x81}X\x01\x00\x00\x00aK\x05sb.").unwrap();
        assert_eq!(known.class(known.root), Some("some.module.Thing"));
        assert_eq!(known.int(known.item(known.root, "a").unwrap()), Some(5));
        for harmful in [
            &b"cos\nsystem\n(X\x02\x00\x00\x00lst R."[..],
            b"cposix\nsystem\n)R.",
            b"cbuiltins\neval\n)R.",
            b"\x8c\x0asubprocess\x8c\x05Popen\x93)R.",
        ] {
            let error = read(harmful).unwrap_err();
            assert!(error.contains("which no checkpoint needs"), "{error}");
        }
    }

    #[test]
    fn what_is_malformed_is_refused() {
        for (bytes, said) in [
            (&b""[..], "cut off"),
            (b"K", "cut off"),
            (b"X\xff\xff\xff\xffab.", "far more memory"),
            (b".", "not there"),
            (b"h\x05.", "recalls"),
            (b"K\x01K\x02s.", "not there"),
            (b"}K\x01K\x02K\x03K\x04u.", "mark"),
            (b"\xff.", "not known"),
            (b"\x80\x09.", "protocol"),
        ] {
            let error = read(bytes).unwrap_err();
            assert!(error.contains(said), "{bytes:?}: {error}");
        }
        // Containers without end in a small file.
        let many = [&b"]".repeat(100_000)[..], b"."].concat();
        assert!(Pickle::read(&many, 100).unwrap_err().contains("far more memory"));
    }
}
