//! Functions that a pickle names only to run code. Nothing in a pickle is ever called here, whatever it names: to
//! refuse the file tells its owner what it is, as well as a list can. It is that of
//! <https://github.com/mmaitre314/picklescan>, less what honest checkpoints name too (`functools.partial`), and more.

use std::{collections::BTreeSet, path::Path};

use super::pickle::Global;
use crate::{Error, Result};

/// Modules and packages of which everything is refused; none whose name an honest project may have taken.
const MODULES: [&str; 44] = [
    "_aix_support",
    "_osx_support",
    "_posixsubprocess",
    "aiohttp",
    "asyncio",
    "bdb",
    "commands",
    "ctypes",
    "distutils.file_util",
    "distutils.spawn",
    "ensurepip",
    "ftplib",
    "http.client",
    "http.server",
    "httplib",
    "imaplib",
    "importlib",
    "marshal",
    "multiprocessing.process",
    "multiprocessing.util",
    "nt",
    "numpy.f2py",
    "numpy.testing._private.utils",
    "os",
    "pdb",
    "pip",
    "poplib",
    "posix",
    "pty",
    "pydoc",
    "requests",
    "runpy",
    "shutil",
    "smtplib",
    "socket",
    "socketserver",
    "ssl",
    "subprocess",
    "sys",
    "telnetlib",
    "torch.hub",
    "urllib.request",
    "urllib2",
    "webbrowser",
];

/// Functions and classes of modules that have harmless ones too.
const ITEMS: [(&str, &[&str]); 33] = [
    ("__builtin__", &BUILTINS),
    ("_pickle", &["Unpickler", "load", "loads"]),
    ("builtins", &BUILTINS),
    ("cProfile", &["Profile", "run", "runctx"]),
    ("code", &["InteractiveConsole", "InteractiveInterpreter", "compile_command", "interact"]),
    ("codeop", &["CommandCompiler", "Compile", "compile_command"]),
    ("concurrent.futures.process", &["ProcessPoolExecutor"]),
    ("dill", &["load", "loads"]),
    ("doctest", &["debug_script", "debug_src", "testsource"]),
    ("idlelib.autocomplete", &["AutoComplete"]),
    ("idlelib.calltip", &["Calltip", "get_entity"]),
    ("idlelib.debugobj", &["ObjectTreeItem"]),
    ("idlelib.pyshell", &["ModifiedInterpreter"]),
    ("idlelib.run", &["Executive"]),
    ("joblib", &["load"]),
    ("lib2to3.pgen2.grammar", &["Grammar"]),
    ("lib2to3.pgen2.pgen", &["ParserGenerator"]),
    ("logging.config", &["fileConfig", "dictConfig", "listen"]),
    ("operator", &["attrgetter", "methodcaller"]),
    ("pandas", &["read_pickle"]),
    ("pickle", &["Unpickler", "_Unpickler", "_load", "_loads", "load", "loads"]),
    ("profile", &["Profile", "run", "runctx"]),
    ("timeit", &["Timer", "main", "repeat", "timeit"]),
    ("torch", &["load"]),
    ("torch._dynamo.guards", &["GuardBuilder"]),
    ("torch._inductor.codecache", &["compile_file"]),
    ("torch.fx.experimental.symbolic_shapes", &["ShapeEnv"]),
    ("torch.jit.unsupported_tensor_ops", &["execWrapper"]),
    ("torch.serialization", &["load"]),
    ("torch.utils.collect_env", &["run"]),
    ("trace", &["Trace"]),
    ("types", &["CodeType", "FunctionType"]),
    ("venv", &["EnvBuilder", "create", "main"]),
];

const BUILTINS: [&str; 13] = [
    "__import__",
    "apply",
    "breakpoint",
    "compile",
    "delattr",
    "eval",
    "exec",
    "execfile",
    "getattr",
    "globals",
    "input",
    "open",
    "setattr",
];

/// Refuses a file whose pickle imports a function that runs code, used or not.
pub(super) fn check(path: &Path, imports: &BTreeSet<Global>) -> Result<()> {
    match imports.iter().find(|global| runs_code(global)) {
        None => Ok(()),
        Some(global) => {
            let name: String = global.to_string().chars().take(100).collect();
            let message =
                format!("asks Python to call {name} while it loads: refused, nothing was run; do not trust this file");
            Err(Error::checkpoint(path, message))
        }
    }
}

fn runs_code(Global { module, name }: &Global) -> bool {
    let within =
        |package: &str| module.strip_prefix(package).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
    // A name may lead through attributes to a module that its own module imports: `torch`, `os.system`.
    let mut parts = name.split('.');
    let first = parts.clone().next().unwrap_or_default();
    MODULES.into_iter().any(within)
        || parts.any(|part| MODULES.contains(&part))
        || ITEMS.iter().any(|(home, items)| home == module && items.contains(&first))
        // Escapes, which no honest name has.
        || module.contains('\\')
        || name.contains('\\')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(module: &str, name: &str) -> bool {
        runs_code(&Global { module: module.into(), name: name.into() })
    }

    #[test]
    fn what_runs_code_is_refused_and_what_checkpoints_name_is_not() {
        for (module, name) in [
            ("os", "system"),
            ("os.path", "join"),
            ("torch", "os.system"),
            ("torch.serialization", "os"),
            ("builtins", "eval"),
            ("code", "InteractiveInterpreter.runcode"),
            ("asyncio.subprocess", "create_subprocess_shell"),
            ("numpy.f2py.crackfortran", "getlincoef"),
            ("operator", "attrgetter"),
            ("torch", "load"),
            ("torch.hub", "load"),
            ("\\u006fs", "system"),
        ] {
            assert!(refused(module, name), "{module} {name}");
        }
        for (module, name) in [
            ("argparse", "Namespace"),
            ("collections", "OrderedDict"),
            ("collections", "defaultdict"),
            ("torch._utils", "_rebuild_tensor_v2"),
            ("torch", "FloatStorage"),
            ("torch", "device"),
            ("torch.storage", "_load_from_bytes"),
            ("numpy.core.multiarray", "scalar"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("pathlib", "PosixPath"),
            ("omegaconf.dictconfig", "DictConfig"),
            ("functools", "partial"),
            ("copyreg", "_reconstructor"),
            ("_codecs", "encode"),
            ("builtins", "set"),
            ("code.models", "Net"),
            ("code", "Net"),
            ("osmnx", "Graph"),
            ("torch.optim.sgd", "SGD"),
            ("__main__", "Net.Inner"),
        ] {
            assert!(!refused(module, name), "{module} {name}");
        }
    }
}
