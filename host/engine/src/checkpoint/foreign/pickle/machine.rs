//! The stack machine whose program a pickle is. It makes values and calls nothing.

mod instructions;

use std::collections::HashMap;

use super::{Read, Ref, Value};

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

/// The machine in the middle of a pickle.
pub(super) struct Machine<'a> {
    bytes: &'a [u8],
    /// The next instruction.
    pub(super) at: usize,
    /// All values so far.
    pub(super) values: Vec<Value>,
    stack: Vec<Ref>,
    marks: Vec<usize>,
    memo: HashMap<u64, Ref>,
    /// Bytes that may still be taken.
    left: usize,
}

impl<'a> Machine<'a> {
    /// At the start of a pickle; it may take so many bytes of memory.
    pub(super) fn new(bytes: &'a [u8], left: usize) -> Self {
        let (stack, marks, memo) = (Vec::new(), Vec::new(), HashMap::new());
        Self { bytes, at: 0, values: Vec::new(), stack, marks, memo, left }
    }

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
}
