//! Reads Python pickles without executing them.
//!
//! A pickle is a program for a small stack machine. This one knows numbers, texts and containers. A class is its name, a call
//! of one is a record of the call (`Object`), never a call: the reader of the result decides which names it understands. A
//! pickle that names a function of the system or of the interpreter is refused as what it is.
//!
//! Memory is bounded by the size of the file that the pickle came in, whatever it says of itself.

use std::collections::HashMap;

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

/// Modules whose functions only a pickle that means harm would name.
const HARMFUL: &[&str] = &[
    "os",
    "posix",
    "nt",
    "sys",
    "subprocess",
    "shutil",
    "socket",
    "runpy",
    "importlib",
    "ctypes",
    "pty",
    "code",
    "pdb",
    "webbrowser",
    "pickle",
    "marshal",
    "multiprocessing",
    "asyncio",
    "http",
    "urllib",
    "requests",
    "pip",
    "timeit",
    "types",
];

/// What is harmless of the interpreter's own.
const BUILTINS: &[&str] = &[
    "dict",
    "list",
    "set",
    "frozenset",
    "tuple",
    "int",
    "float",
    "complex",
    "bool",
    "str",
    "bytes",
    "bytearray",
    "object",
    "slice",
    "range",
    "type",
    "long",
    "unicode",
];

/// Bytes that a value takes beside its text.
const NODE: usize = 2 * size_of::<Value>();

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    values: Vec<Value>,
    stack: Vec<Ref>,
    marks: Vec<usize>,
    memo: HashMap<u64, Ref>,
    /// Bytes that may still be taken.
    left: usize,
}

type Read<T> = Result<T, String>;

impl Pickle {
    /// Reads a pickle that came in a file of `size` bytes. An error says what is wrong with it.
    pub fn read(bytes: &[u8], size: usize) -> Read<Self> {
        let left = 6 * size.max(bytes.len()) + (1 << 16);
        let (stack, marks, memo) = (Vec::new(), Vec::new(), HashMap::new());
        let mut machine = Machine { bytes, at: 0, values: Vec::new(), stack, marks, memo, left };
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

    /// The value of a whole number as a key of a dictionary.
    pub fn numbered(&self, place: Ref, key: i64) -> Option<Ref> {
        let Value::Dict(pairs) = self.get(place) else { return None };
        let found = pairs.iter().find(|(k, _)| self.int(*k) == Some(key));
        found.map(|(_, value)| *value)
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

impl Machine<'_> {
    fn take(&mut self, n: usize) -> Read<&[u8]> {
        let end = self.at.checked_add(n).filter(|end| *end <= self.bytes.len());
        let end = end.ok_or("it is cut off")?;
        let part = &self.bytes[self.at..end];
        self.at = end;
        Ok(part)
    }

    fn byte(&mut self) -> Read<u8> {
        Ok(self.take(1)?[0])
    }

    fn number(&mut self, bytes: usize) -> Read<u64> {
        let part = self.take(bytes)?;
        Ok(part.iter().rev().fold(0, |n, byte| n << 8 | u64::from(*byte)))
    }

    fn length(&mut self, bytes: usize) -> Read<usize> {
        usize::try_from(self.number(bytes)?).map_err(|_| "a length is impossible".into())
    }

    fn line(&mut self) -> Read<String> {
        let rest = &self.bytes[self.at..];
        let end = rest.iter().position(|byte| *byte == b'\n').ok_or("it is cut off")?;
        let line = String::from_utf8_lossy(&rest[..end]).trim_end_matches('\r').to_string();
        self.at += end + 1;
        Ok(line)
    }

    fn charge(&mut self, bytes: usize) -> Read<()> {
        self.left =
            self.left.checked_sub(bytes).ok_or("it would take far more memory than its file")?;
        Ok(())
    }

    fn make(&mut self, value: Value) -> Read<Ref> {
        self.charge(NODE)?;
        let place = Ref::try_from(self.values.len()).map_err(|_| "too many values")?;
        self.values.push(value);
        Ok(place)
    }

    fn push(&mut self, value: Value) -> Read<()> {
        let place = self.make(value)?;
        self.stack.push(place);
        Ok(())
    }

    fn text(&mut self, length: usize) -> Read<()> {
        self.charge(length)?;
        let part = self.take(length)?;
        // Python lets lone surrogates pass.
        let text = String::from_utf8_lossy(part).into_owned();
        self.push(Value::Text(text))
    }

    fn raw(&mut self, length: usize) -> Read<()> {
        self.charge(length)?;
        let part = self.take(length)?.to_vec();
        self.push(Value::Bytes(part))
    }

    /// Takes the top of the stack, above the last mark.
    fn pop(&mut self) -> Read<Ref> {
        if self.stack.len() <= self.marks.last().copied().unwrap_or(0) {
            return Err("it takes what is not there".into());
        }
        self.stack.pop().ok_or_else(|| "it takes what is not there".into())
    }

    fn top(&self) -> Read<Ref> {
        let floor = self.marks.last().copied().unwrap_or(0);
        let top = self.stack.get(floor..).and_then(<[Ref]>::last);
        top.copied().ok_or_else(|| "it uses what is not there".into())
    }

    /// What stands above the last mark.
    fn marked(&mut self) -> Read<Vec<Ref>> {
        let mark = self.marks.pop().ok_or("a mark is missing")?;
        let items = self.stack.split_off(mark.min(self.stack.len()));
        self.charge(items.len() * size_of::<Ref>())?;
        Ok(items)
    }

    fn tuple(&mut self, n: usize) -> Read<()> {
        let mut items = Vec::with_capacity(n);
        for _ in 0..n {
            items.push(self.pop()?);
        }
        items.reverse();
        self.charge(n * size_of::<Ref>())?;
        self.push(Value::Tuple(items))
    }

    fn extend(&mut self, list: Ref, items: &[Ref]) -> Read<()> {
        self.charge(size_of_val(items))?;
        match self.values.get_mut(list as usize) {
            Some(Value::List(all)) => all.extend(items),
            // A list of a class that is not known: what it holds is not needed.
            Some(Value::Object { .. }) => {}
            _ => return Err("it appends to what is no list".into()),
        }
        Ok(())
    }

    fn set(&mut self, dict: Ref, items: &[Ref]) -> Read<()> {
        if !items.len().is_multiple_of(2) {
            return Err("a key has no value".into());
        }
        self.charge(size_of_val(items))?;
        match self.values.get_mut(dict as usize) {
            Some(Value::Dict(all)) => {
                all.extend(items.chunks_exact(2).map(|pair| (pair[0], pair[1])))
            }
            Some(Value::Object { .. }) => {}
            _ => return Err("it sets an item of what is no dictionary".into()),
        }
        Ok(())
    }

    fn class(&mut self, module: &str, name: &str) -> Read<()> {
        let outer = module.split('.').next().unwrap_or(module);
        let builtin = ["builtins", "__builtin__"].contains(&module);
        if HARMFUL.contains(&outer) || builtin && !BUILTINS.contains(&name) {
            return Err(format!(
                "it would call `{module}.{name}`, which no checkpoint needs: this file may mean harm"
            ));
        }
        self.charge(module.len() + name.len())?;
        self.push(Value::Class(format!("{module}.{name}")))
    }

    /// A call that is recorded; those of plain containers are made.
    fn call(&mut self, class: Ref, args: Ref) -> Read<()> {
        let Some(Value::Class(name)) = self.values.get(class as usize) else {
            return self.push(Value::Object { class, args, state: None });
        };
        let first = match self.values.get(args as usize) {
            Some(Value::Tuple(items)) => items.first().copied(),
            _ => return Err("a call without arguments".into()),
        };
        let made = match (name.as_str(), first.map(|place| &self.values[place as usize])) {
            ("collections.OrderedDict" | "builtins.dict" | "__builtin__.dict", None) => {
                Value::Dict(Vec::new())
            }
            ("collections.defaultdict", _) => Value::Dict(Vec::new()),
            ("builtins.list" | "__builtin__.list" | "builtins.set" | "__builtin__.set", None) => {
                Value::List(Vec::new())
            }
            (
                "builtins.set" | "__builtin__.set" | "builtins.list" | "builtins.frozenset",
                Some(Value::List(items) | Value::Tuple(items)),
            ) => {
                let items = items.clone();
                self.charge(items.len() * size_of::<Ref>())?;
                Value::List(items)
            }
            _ => Value::Object { class, args, state: None },
        };
        self.push(made)
    }

    fn remember(&mut self, key: u64) -> Read<()> {
        let top = self.top()?;
        self.charge(2 * size_of::<(u64, Ref)>())?;
        self.memo.insert(key, top);
        Ok(())
    }

    fn recall(&mut self, key: u64) -> Read<()> {
        let place = *self.memo.get(&key).ok_or("it recalls what it never kept")?;
        self.stack.push(place);
        Ok(())
    }

    fn run(&mut self) -> Read<Ref> {
        for value in [Value::None, Value::Bool(true), Value::Bool(false), Value::Tuple(Vec::new())]
        {
            self.make(value)?;
        }
        let (none, yes, no, empty) = (0, 1, 2, 3);
        loop {
            // The stack may grow by a value a byte.
            if self.stack.len() > self.bytes.len() {
                return Err("it is malformed".into());
            }
            match self.byte()? {
                0x80 => {
                    let version = self.byte()?;
                    if version > 5 {
                        return Err(format!(
                            "its protocol is {version}, and 5 is the newest known"
                        ));
                    }
                }
                0x95 => {
                    self.number(8)?;
                }
                b'.' => return self.pop(),
                b'(' => self.marks.push(self.stack.len()),
                b'0' => {
                    if self.pop().is_err() {
                        self.marks.pop().ok_or("it takes what is not there")?;
                    }
                }
                b'1' => {
                    self.marked()?;
                }
                b'2' => {
                    let top = self.top()?;
                    self.stack.push(top);
                }
                b'N' => self.stack.push(none),
                0x88 => self.stack.push(yes),
                0x89 => self.stack.push(no),
                b')' => self.stack.push(empty),
                b'J' => {
                    let n = self.number(4)? as u32;
                    self.push(Value::Int(i64::from(n.cast_signed())))?;
                }
                b'K' => {
                    let n = self.number(1)?.cast_signed();
                    self.push(Value::Int(n))?;
                }
                b'M' => {
                    let n = self.number(2)?.cast_signed();
                    self.push(Value::Int(n))?;
                }
                0x8a => {
                    let n = self.length(1)?;
                    self.long(n)?;
                }
                0x8b => {
                    let n = self.length(4)?;
                    self.long(n)?;
                }
                b'G' => {
                    let bits = self.number(8)?.swap_bytes();
                    self.push(Value::Float(f64::from_bits(bits)))?;
                }
                b'I' => {
                    let line = self.line()?;
                    let value = match line.as_str() {
                        "00" => Value::Bool(false),
                        "01" => Value::Bool(true),
                        line => Value::Int(line.parse().map_err(|_| "a number is malformed")?),
                    };
                    self.push(value)?;
                }
                b'L' => {
                    let line = self.line()?;
                    let n =
                        line.trim_end_matches('L').parse().map_err(|_| "a number is malformed")?;
                    self.push(Value::Int(n))?;
                }
                b'F' => {
                    let n = self.line()?.parse().map_err(|_| "a number is malformed")?;
                    self.push(Value::Float(n))?;
                }
                b'X' => {
                    let n = self.length(4)?;
                    self.text(n)?;
                }
                0x8c => {
                    let n = self.length(1)?;
                    self.text(n)?;
                }
                0x8d => {
                    let n = self.length(8)?;
                    self.text(n)?;
                }
                b'V' => {
                    let line = self.line()?;
                    self.charge(line.len())?;
                    self.push(Value::Text(line))?;
                }
                b'B' | b'T' => {
                    let n = self.length(4)?;
                    self.raw(n)?;
                }
                b'C' | b'U' => {
                    let n = self.length(1)?;
                    self.raw(n)?;
                }
                0x8e | 0x96 => {
                    let n = self.length(8)?;
                    self.raw(n)?;
                }
                b']' | 0x8f => self.push(Value::List(Vec::new()))?,
                b'}' => self.push(Value::Dict(Vec::new()))?,
                b'l' | 0x91 => {
                    let items = self.marked()?;
                    self.push(Value::List(items))?;
                }
                b't' => {
                    let items = self.marked()?;
                    self.push(Value::Tuple(items))?;
                }
                0x85 => self.tuple(1)?,
                0x86 => self.tuple(2)?,
                0x87 => self.tuple(3)?,
                b'd' => {
                    let items = self.marked()?;
                    self.push(Value::Dict(Vec::new()))?;
                    let dict = self.top()?;
                    self.set(dict, &items)?;
                }
                b'a' => {
                    let item = self.pop()?;
                    let list = self.top()?;
                    self.extend(list, &[item])?;
                }
                b'e' | 0x90 => {
                    let items = self.marked()?;
                    let list = self.top()?;
                    self.extend(list, &items)?;
                }
                b's' => {
                    let (value, key) = (self.pop()?, self.pop()?);
                    let dict = self.top()?;
                    self.set(dict, &[key, value])?;
                }
                b'u' => {
                    let items = self.marked()?;
                    let dict = self.top()?;
                    self.set(dict, &items)?;
                }
                b'c' => {
                    let (module, name) = (self.line()?, self.line()?);
                    self.class(&module, &name)?;
                }
                0x93 => {
                    let (name, module) = (self.pop()?, self.pop()?);
                    let names = (&self.values[module as usize], &self.values[name as usize]);
                    let (Value::Text(module), Value::Text(name)) = names else {
                        return Err("a class has no name".into());
                    };
                    let (module, name) = (module.clone(), name.clone());
                    self.class(&module, &name)?;
                }
                b'R' | 0x81 => {
                    let (args, class) = (self.pop()?, self.pop()?);
                    self.call(class, args)?;
                }
                0x92 => {
                    let (_named, args, class) = (self.pop()?, self.pop()?, self.pop()?);
                    self.call(class, args)?;
                }
                b'b' => {
                    let state = self.pop()?;
                    let object = self.top()?;
                    if let Some(Value::Object { state: kept, .. }) =
                        self.values.get_mut(object as usize)
                    {
                        *kept = Some(state);
                    }
                }
                b'q' => {
                    let key = self.number(1)?;
                    self.remember(key)?;
                }
                b'r' => {
                    let key = self.number(4)?;
                    self.remember(key)?;
                }
                0x94 => self.remember(self.memo.len() as u64)?,
                b'p' => {
                    let key = self.line()?.parse().map_err(|_| "a number is malformed")?;
                    self.remember(key)?;
                }
                b'h' => {
                    let key = self.number(1)?;
                    self.recall(key)?;
                }
                b'j' => {
                    let key = self.number(4)?;
                    self.recall(key)?;
                }
                b'g' => {
                    let key = self.line()?.parse().map_err(|_| "a number is malformed")?;
                    self.recall(key)?;
                }
                b'Q' => {
                    let name = self.pop()?;
                    self.push(Value::Outside(name))?;
                }
                other => return Err(format!("the instruction 0x{other:02x} is not known")),
            }
        }
    }

    fn long(&mut self, length: usize) -> Read<()> {
        let part = self.take(length)?;
        let value = if length > 8 {
            Value::Float(f64::INFINITY)
        } else {
            let negative = part.last().is_some_and(|byte| byte & 0x80 != 0);
            let fill = if negative { u64::MAX } else { 0 };
            let bits = part.iter().rev().fold(fill, |n, byte| n << 8 | u64::from(*byte));
            Value::Int(bits.cast_signed())
        };
        self.push(value)
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
