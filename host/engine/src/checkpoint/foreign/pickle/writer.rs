//! Writes pickles that Python reads.

use std::collections::HashMap;

use serde_json::Value;
use tch::{Kind, Tensor};

/// Writes a pickle of protocol 2, with bytes as protocol 3 has them.
pub(in super::super) struct Writer {
    bytes: Vec<u8>,
    storages: Vec<Tensor>,
    /// Where the numbers of tensors are, with the storage that holds them: a shared one is written once.
    written: HashMap<(usize, usize), usize>,
}

impl Default for Writer {
    fn default() -> Self {
        Self { bytes: vec![0x80, 2], storages: Vec::new(), written: HashMap::new() }
    }
}

impl Writer {
    pub(in super::super) fn dict(&mut self, entries: impl FnOnce(&mut Self)) {
        self.bytes.extend(b"}(");
        entries(self);
        self.bytes.push(b'u');
    }

    pub(in super::super) fn ordered(&mut self, entries: impl FnOnce(&mut Self)) {
        self.bytes.extend(b"ccollections\nOrderedDict\n)R(");
        entries(self);
        self.bytes.push(b'u');
    }

    pub(in super::super) fn entry(&mut self, key: &str, value: impl FnOnce(&mut Self)) {
        self.text(key);
        value(self);
    }

    pub(in super::super) fn list<'a>(&mut self, tensors: impl Iterator<Item = &'a Tensor>) {
        self.bytes.extend(b"](");
        tensors.for_each(|tensor| self.tensor(tensor));
        self.bytes.push(b'e');
    }

    /// A list of what is written in it.
    pub(in super::super) fn all(&mut self, elements: impl FnOnce(&mut Self)) {
        self.bytes.extend(b"](");
        elements(self);
        self.bytes.push(b'e');
    }

    /// A tuple of what is written in it.
    pub(in super::super) fn tuple_of(&mut self, elements: impl FnOnce(&mut Self)) {
        self.bytes.push(b'(');
        elements(self);
        self.bytes.push(b't');
    }

    /// `MODULE.NAME` itself.
    pub(in super::super) fn class(&mut self, module: &str, name: &str) {
        self.bytes.extend(format!("c{module}\n{name}\n").bytes());
    }

    /// `MODULE.NAME(ARGUMENTS)`.
    pub(in super::super) fn call(
        &mut self,
        module: &str,
        name: &str,
        arguments: impl FnOnce(&mut Self),
    ) {
        self.class(module, name);
        self.tuple_of(arguments);
        self.bytes.push(b'R');
    }

    /// The call of the value before, without arguments.
    pub(in super::super) fn called(&mut self) {
        self.bytes.extend(b")R");
    }

    /// What the value before is set to.
    pub(in super::super) fn state(&mut self, state: impl FnOnce(&mut Self)) {
        state(self);
        self.bytes.push(b'b');
    }

    pub(in super::super) fn none(&mut self) {
        self.bytes.push(b'N');
    }

    pub(in super::super) fn raw(&mut self, bytes: &[u8]) {
        self.bytes.push(b'B');
        self.bytes.extend((bytes.len() as u32).to_le_bytes());
        self.bytes.extend(bytes);
    }

    /// The pickle, and the numbers that it names.
    pub(in super::super) fn done(mut self) -> (Vec<u8>, Vec<Tensor>) {
        self.bytes.push(b'.');
        (self.bytes, self.storages)
    }

    /// Plain values, and objects of such.
    pub(in super::super) fn json(&mut self, value: &Value) {
        match value {
            Value::Object(map) => self.dict(|out| {
                map.iter().for_each(|(key, value)| out.entry(key, |out| out.json(value)));
            }),
            Value::Bool(yes) => self.bytes.push(if *yes { 0x88 } else { 0x89 }),
            Value::Number(n) if n.is_i64() => self.int(n.as_i64().unwrap_or_default()),
            Value::Number(n) => self.float(n.as_f64().unwrap_or_default()),
            Value::String(text) => self.text(text),
            Value::Array(all) => self.all(|out| all.iter().for_each(|value| out.json(value))),
            Value::Null => self.none(),
        }
    }

    pub(in super::super) fn text(&mut self, text: &str) {
        self.bytes.push(b'X');
        self.bytes.extend((text.len() as u32).to_le_bytes());
        self.bytes.extend(text.as_bytes());
    }

    pub(in super::super) fn int(&mut self, n: i64) {
        match i32::try_from(n) {
            Ok(n) => {
                self.bytes.push(b'J');
                self.bytes.extend(n.to_le_bytes());
            }
            Err(_) => {
                self.bytes.extend([0x8a, 8]);
                self.bytes.extend(n.to_le_bytes());
            }
        }
    }

    pub(in super::super) fn float(&mut self, n: f64) {
        self.bytes.push(b'G');
        self.bytes.extend(n.to_be_bytes());
    }

    fn tuple(&mut self, numbers: &[i64]) {
        self.bytes.push(b'(');
        numbers.iter().for_each(|n| self.int(*n));
        self.bytes.push(b't');
    }

    /// A tensor in float32, its numbers one after the other in a storage of their own.
    pub(in super::super) fn tensor(&mut self, tensor: &Tensor) {
        let tensor = tensor.detach().to_device(tch::Device::Cpu).to_kind(Kind::Float).contiguous();
        // Of the copy, if it is one: what is written stays, so no other tensor comes to lie there.
        let place = (tensor.data_ptr() as usize, tensor.numel());
        let next = self.storages.len();
        let number = match place.1 {
            0 => next,
            _ => *self.written.entry(place).or_insert(next),
        };
        self.bytes.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        self.text("storage");
        self.bytes.extend(b"ctorch\nFloatStorage\n");
        self.text(&number.to_string());
        self.text("cpu");
        self.int(tensor.numel() as i64);
        self.bytes.extend(b"tQ");
        self.int(0);
        self.tuple(&tensor.size());
        self.tuple(&tensor.stride());
        self.bytes.extend(b"\x89ccollections\nOrderedDict\n)RtR");
        if number == next {
            self.storages.push(tensor);
        }
    }
}
