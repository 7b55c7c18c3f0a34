//! The Python inside this process.
//!
//! Which one: the interpreter that `MASKDIFF_PYTHON` names, else the active virtual environment's, else the one that
//! `scripts/setup.sh --python` made, else `python3`. It is asked where its library and its modules are; the library is
//! then opened here, by its stable C interface. So one build of this plugin serves every Python from 3.10 on, and none is
//! needed to build it.
#![expect(unsafe_code, reason = "opens Python's library and calls its C interface")]

use std::ffi::{CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use maskdiff_plugin_api::prelude::*;
use maskdiff_plugin_api::{Kind, PluginError};
use serde_json::Value;

use crate::door::{call_model, take_answer};

/// The door's other side, and its part for networks.
const DOOR: &str = include_str!("door.py");
const NETWORK: &str = include_str!("network.py");
const BACKWARD: &str = include_str!("backward.py");

/// What an interpreter says of itself.
const QUESTION: &str = "
import importlib.metadata, importlib.util, json, os, sys, sysconfig
names = [sysconfig.get_config_var(k) or '' for k in ('INSTSONAME', 'LDLIBRARY')]
names += ['libpython%d.%d.so.1.0' % sys.version_info[:2], 'libpython%d.%d.so' % sys.version_info[:2]]
places = [sysconfig.get_config_var('LIBDIR') or '', os.path.join(sys.base_prefix, 'lib')]
files = [os.path.join(p, n) for n in names if '.so' in n for p in places]
torch = importlib.util.find_spec('torch')
print(json.dumps({
    'executable': sys.executable, 'version': sys.version.split()[0], 'home': sys.base_prefix,
    'prefix': sys.prefix, 'path': sys.path[1:], 'library': next((f for f in files if os.path.exists(f)), None),
    'torch': importlib.metadata.version('torch') if torch else None, 'new': sys.version_info >= (3, 10)}))
";

/// A request into Python, see `door.py`.
pub(crate) type Call = unsafe extern "C" fn(
    request: *const c_char,
    tensors: *const *const c_void,
    count: usize,
    model: *const c_void,
    answer: *mut c_void,
);

/// A running interpreter.
#[derive(Debug)]
pub(crate) struct Python {
    ensure: unsafe extern "C" fn() -> c_int,
    release: unsafe extern "C" fn(c_int),
    clear: unsafe extern "C" fn(),
    call: Call,
}

impl Python {
    /// Runs `body` while this thread holds the interpreter.
    pub(crate) fn with_lock(&self, body: impl FnOnce(Call)) {
        // SAFETY: the interpreter runs and is never ended.
        let state = unsafe { (self.ensure)() };
        // SAFETY: as above. An exception that a backward pass has left behind would be taken for one of the call.
        unsafe { (self.clear)() };
        body(self.call);
        // SAFETY: as above; the state is that of this thread.
        unsafe { (self.release)(state) };
    }
}

/// The interpreter, started the first time.
pub(crate) fn python() -> Result<&'static Python> {
    static PYTHON: OnceLock<Result<Python>> = OnceLock::new();
    PYTHON.get_or_init(start).as_ref().map_err(Clone::clone)
}

fn problem(message: String, hint: &str) -> PluginError {
    let mut error = PluginError::new(Kind::Config, message).hint(hint);
    // A line of this file tells nobody anything.
    error.location.clear();
    error
}

const ENVIRONMENT: &str = "`scripts/setup.sh --python` makes an environment that fits; MASKDIFF_PYTHON=/path/to/python \
                           names another";

fn candidates() -> Vec<PathBuf> {
    if let Some(named) = std::env::var_os("MASKDIFF_PYTHON") {
        return vec![named.into()];
    }
    let folder = |name: &str, inside: &str| {
        let folder = std::env::var_os(name).filter(|value| !value.is_empty());
        folder.map(|folder| PathBuf::from(folder).join(inside))
    };
    let active = folder("VIRTUAL_ENV", "bin/python3");
    let cache = folder("XDG_CACHE_HOME", "").or_else(|| folder("HOME", ".cache"));
    let made = cache.map(|cache| cache.join("maskdiff/python-2.11.0/bin/python3"));
    // One that is there and cannot be used is chosen all the same, and says why.
    let there = [active, made].into_iter().flatten().filter(|python| {
        !std::fs::metadata(python).is_err_and(|e| {
            matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory)
        })
    });
    there.chain([PathBuf::from("python3")]).collect()
}

/// What the chosen interpreter says of itself.
fn found() -> Result<Value> {
    let chosen = candidates().swap_remove(0);
    let name = chosen.display();
    let said = Command::new(&chosen).args(["-c", QUESTION]).output();
    let said =
        said.map_err(|e| problem(format!("there is no Python: `{name}`: {e}"), ENVIRONMENT))?;
    let found: Value = serde_json::from_slice(&said.stdout).map_err(|_| {
        let words = String::from_utf8_lossy(&said.stderr);
        problem(format!("`{name}` does not work: {}", words.trim()), ENVIRONMENT)
    })?;
    let version = found["version"].as_str().unwrap_or_default();
    if found["new"] != Value::Bool(true) {
        return Err(problem(
            format!("`{name}` is Python {version}, expected 3.10 or newer"),
            ENVIRONMENT,
        ));
    }
    match found["torch"].as_str() {
        Some(torch) if torch.starts_with("2.11.") => {}
        Some(torch) => {
            let message = format!("`{name}` has torch {torch}, this host runs over 2.11");
            return Err(problem(message, ENVIRONMENT));
        }
        None => return Err(problem(format!("`{name}` has no torch package"), ENVIRONMENT)),
    }
    if found["library"].is_null() {
        return Err(problem(
            format!("`{name}` is Python {version} without its shared library (libpython)"),
            "install it (Debian and Ubuntu: apt-get install libpython3-dev), or use a Python that was built with \
             --enable-shared",
        ));
    }
    Ok(found)
}

fn start() -> Result<Python> {
    let found = found()?;
    let text = |key: &str| found[key].as_str().unwrap_or_default();
    let library = Path::new(text("library"));
    let failed = |e: libloading::Error| {
        problem(format!("`{}` does not open: {e}", library.display()), ENVIRONMENT)
    };
    // Its extension modules look for Python's names in the whole process.
    // SAFETY: Python's own library; its initializers have no preconditions.
    let opened = unsafe { Library::open(Some(library), RTLD_NOW | RTLD_GLOBAL) }.map_err(failed)?;
    // SAFETY: the signatures are those of Python's stable C interface.
    let (initialize, save, run, ensure, release, clear) = unsafe {
        (
            *opened.get::<unsafe extern "C" fn(c_int)>(b"Py_InitializeEx\0").map_err(failed)?,
            *opened
                .get::<unsafe extern "C" fn() -> *mut c_void>(b"PyEval_SaveThread\0")
                .map_err(failed)?,
            *opened
                .get::<unsafe extern "C" fn(*const c_char, *mut c_void) -> c_int>(
                    b"PyRun_SimpleStringFlags\0",
                )
                .map_err(failed)?,
            *opened
                .get::<unsafe extern "C" fn() -> c_int>(b"PyGILState_Ensure\0")
                .map_err(failed)?,
            *opened.get::<unsafe extern "C" fn(c_int)>(b"PyGILState_Release\0").map_err(failed)?,
            *opened.get::<unsafe extern "C" fn()>(b"PyErr_Clear\0").map_err(failed)?,
        )
    };
    // Never closed: Python cannot be ended and begun again under extension modules.
    std::mem::forget(opened);
    let mut shared = Shared::default();
    let prelude = format!(
        "import sys\nsys.path[:] = {}\nsys.prefix = sys.exec_prefix = {}\nsys.executable = {}\n\
         exec(compile({}, 'maskdiff/door.py', 'exec'), \
         {{'__name__': 'maskdiff_door', 'NETWORK': {}, 'BACKWARD': {}, 'SHARED': {}, 'TAKE_ANSWER': {}, 'CALL_MODEL': {}}})\n",
        found["path"],
        found["prefix"],
        found["executable"],
        Value::from(DOOR),
        Value::from(NETWORK),
        Value::from(BACKWARD),
        (&raw mut shared) as usize,
        take_answer as *const () as usize,
        call_model as *const () as usize,
    );
    let prelude = CString::new(prelude)?;
    // Python finds its standard library by this; the host's children should not.
    // SAFETY: components are made on one thread, before the host starts others.
    unsafe { std::env::set_var("PYTHONHOME", text("home")) };
    // SAFETY: called once; without signal handlers, which are the host's.
    unsafe { initialize(0) };
    // SAFETY: as above.
    unsafe { std::env::remove_var("PYTHONHOME") };
    // SAFETY: this thread holds the interpreter since it began, and gives it back.
    let status = unsafe {
        let status = run(prelude.as_ptr(), std::ptr::null_mut());
        save();
        status
    };
    match shared.call {
        Some(call) if status == 0 => Ok(Python { ensure, release, clear, call }),
        _ => Err(problem(
            format!("Python {} could not load torch; its words stand above", text("version")),
            ENVIRONMENT,
        )),
    }
}

/// Filled by `door.py`.
#[repr(C)]
#[derive(Default)]
struct Shared {
    call: Option<Call>,
}
