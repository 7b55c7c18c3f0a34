//! The instructions of a pickle.

use super::{Machine, Read, Ref, Value};

/// The values that [`Machine::run`] makes first.
const NONE: Ref = 0;
const TRUE: Ref = 1;
const FALSE: Ref = 2;
const EMPTY: Ref = 3;

impl Machine<'_> {
    /// Runs to the end; returns the value that the pickle stands for.
    pub(in super::super) fn run(&mut self) -> Read<Ref> {
        for value in [Value::None, Value::Bool(true), Value::Bool(false), Value::Tuple(Vec::new())]
        {
            self.make(value)?;
        }
        loop {
            // The stack may grow by a value a byte.
            if self.stack.len() > self.bytes.len() {
                return Err("it is malformed".into());
            }
            let code = self.byte()?;
            if code == b'.' {
                return self.pop();
            }
            let known = self.moves(code)?
                || self.scalar(code)?
                || self.string(code)?
                || self.container(code)?
                || self.object(code)?
                || self.memory(code)?;
            if !known {
                return Err(format!("the instruction 0x{code:02x} is not known"));
            }
        }
    }

    /// Frames, marks, and what leaves the stack or doubles its top.
    fn moves(&mut self, code: u8) -> Read<bool> {
        match code {
            0x80 => {
                let version = self.byte()?;
                if version > 5 {
                    return Err(format!("its protocol is {version}, and 5 is the newest known"));
                }
            }
            0x95 => {
                self.number(8)?;
            }
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
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// None, truth values and numbers.
    fn scalar(&mut self, code: u8) -> Read<bool> {
        match code {
            b'N' => self.stack.push(NONE),
            0x88 => self.stack.push(TRUE),
            0x89 => self.stack.push(FALSE),
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
                let n = line.trim_end_matches('L').parse().map_err(|_| "a number is malformed")?;
                self.push(Value::Int(n))?;
            }
            b'F' => {
                let n = self.line()?.parse().map_err(|_| "a number is malformed")?;
                self.push(Value::Float(n))?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Texts and bytes.
    fn string(&mut self, code: u8) -> Read<bool> {
        match code {
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
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Tuples, lists and dictionaries.
    fn container(&mut self, code: u8) -> Read<bool> {
        match code {
            b')' => self.stack.push(EMPTY),
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
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Classes and their objects.
    fn object(&mut self, code: u8) -> Read<bool> {
        match code {
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
            b'Q' => {
                let name = self.pop()?;
                self.push(Value::Outside(name))?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// What is kept and recalled by number.
    fn memory(&mut self, code: u8) -> Read<bool> {
        match code {
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
            _ => return Ok(false),
        }
        Ok(true)
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
