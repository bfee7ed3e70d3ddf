//! Where NVRTC may lie: where `UNFREEZE_NVRTC` says; else on the loader's path, in a CUDA toolkit, in a conda
//! environment, in the Python packages into which `pip install nvidia-cuda-nvrtc` puts it.

use std::{
    env, fs, iter,
    path::{Path, PathBuf},
};

use super::{nvrtc::Nvrtc, probe::version};

/// The variable that names NVRTC's file or folder; several are separated as in `PATH`.
pub const NVRTC_VARIABLE: &str = "UNFREEZE_NVRTC";

/// Bare names for the loader, the newest first.
#[cfg(windows)]
const NAMES: &[&str] = &["nvrtc64_130_0.dll", "nvrtc64_120_0.dll"];
#[cfg(not(windows))]
const NAMES: &[&str] = &["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"];
/// How the names of its files begin.
#[cfg(windows)]
const PREFIX: &str = "nvrtc64_";
#[cfg(not(windows))]
const PREFIX: &str = "libnvrtc.so";

/// Folders within a CUDA toolkit.
#[cfg(windows)]
const TOOLKIT: &[&str] = &["bin", "bin/x64"];
#[cfg(not(windows))]
const TOOLKIT: &[&str] = &["lib64", "lib", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib"];
/// Folders within a folder of Python packages: the wheels of CUDA 13 and 12.
#[cfg(windows)]
const WHEELS: &[&str] = &["nvidia/cu13/bin/x86_64", "nvidia/cu13/bin", "nvidia/cuda_nvrtc/bin"];
#[cfg(not(windows))]
const WHEELS: &[&str] = &["nvidia/cu13/lib", "nvidia/cuda_nvrtc/lib"];

/// Somewhere to look.
struct Place {
    /// In words.
    what: String,
    /// What lies there, the best first; bare names where the loader looks.
    files: Vec<PathBuf>,
}

impl Place {
    /// Folders, under one description.
    fn new(what: impl Into<String>, folders: impl IntoIterator<Item = PathBuf>) -> Self {
        Self { what: what.into(), files: folders.into_iter().flat_map(|folder| libraries(&folder)).collect() }
    }
}

/// Finds NVRTC: the first that makes machine code for a driver of `driver_version`, which is one of the same major CUDA
/// version or of one before.
///
/// # Errors
/// A text that says where it was looked for and how to get it.
pub fn find_nvrtc(driver_version: Option<u32>) -> Result<Nvrtc, String> {
    let mut looked = Vec::new();
    for (place, found) in search() {
        let fits = |nvrtc: &Nvrtc| driver_version.is_none_or(|driver| nvrtc.version().0 <= driver / 1000);
        match found {
            Ok(nvrtc) if fits(&nvrtc) => return Ok(nvrtc),
            Ok(nvrtc) => looked.push(format!("  {nvrtc:?}: too new for the driver")),
            Err(reason) => looked.push(format!("  {place}: {reason}")),
        }
    }
    Err(not_found(&looked, driver_version))
}

/// Every NVRTC, one of each version, in the order in which they are preferred.
pub fn all_nvrtc() -> Vec<Nvrtc> {
    let mut all: Vec<Nvrtc> = Vec::new();
    for nvrtc in search().filter_map(|(_, found)| found.ok()) {
        if all.iter().all(|known| known.version() != nvrtc.version()) {
            all.push(nvrtc);
        }
    }
    all
}

/// Looks at one place after the other: its name, and an NVRTC or why there is none.
fn search() -> impl Iterator<Item = (String, Result<Nvrtc, String>)> {
    let asked = env::var_os(NVRTC_VARIABLE).filter(|value| !value.is_empty());
    let anywhere = asked.is_none();
    let named =
        asked.into_iter().flat_map(|value| env::split_paths(&value).map(|path| named(&path)).collect::<Vec<_>>());
    let usual = iter::once_with(usual).filter(move |_| anywhere).flatten();
    // Asking Python takes longer than to look everywhere else.
    let python = iter::once_with(python).filter(move |_| anywhere);
    named.chain(usual).chain(python).flat_map(|place| {
        let what = place.what;
        let mut found: Vec<_> = Vec::new();
        if place.files.is_empty() {
            found.push((what.clone(), Err("nothing".to_owned())));
        }
        found.into_iter().chain(place.files.into_iter().map(move |file| {
            // The loader's own words repeat the name.
            let short =
                |reason: String| if reason.ends_with("No such file or directory") { "nothing".into() } else { reason };
            let nvrtc = Nvrtc::open(&file).map_err(short);
            let at = if file.is_absolute() { file.display().to_string() } else { what.clone() };
            (at, nvrtc)
        }))
    })
}

/// What [`NVRTC_VARIABLE`] names.
fn named(path: &Path) -> Place {
    let what = format!("{NVRTC_VARIABLE}={}", path.display());
    if path.is_dir() {
        let inner = TOOLKIT.iter().chain(WHEELS).map(|inner| path.join(inner));
        let folders = iter::once(path.to_owned()).chain(inner);
        return Place::new(what, folders.collect::<Vec<_>>());
    }
    Place { what, files: vec![std::path::absolute(path).unwrap_or_else(|_| path.to_owned())] }
}

/// The usual places, in order.
fn usual() -> Vec<Place> {
    let variable = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let toolkit = |root: PathBuf| TOOLKIT.iter().map(move |inner| root.join(inner));
    let mut places = Vec::new();
    for name in NAMES {
        places.push(Place { what: format!("{name} on the loader's path"), files: vec![name.into()] });
    }
    for name in ["CUDA_HOME", "CUDA_PATH"] {
        if let Some(root) = variable(name) {
            places.push(Place::new(format!("{name}={}", root.display()), toolkit(root)));
        }
    }
    if cfg!(unix) {
        places.push(Place::new("/usr/local/cuda*", matching(Path::new("/usr/local"), "cuda").flat_map(toolkit)));
        places.push(Place::new("/opt/cuda*", matching(Path::new("/opt"), "cuda").flat_map(toolkit)));
    }
    for name in ["VIRTUAL_ENV", "CONDA_PREFIX"] {
        if let Some(root) = variable(name) {
            let folders = toolkit(root.clone()).chain(wheels(site_packages(&root)));
            places.push(Place::new(format!("{name}={}", root.display()), folders.collect::<Vec<_>>()));
        }
    }
    if let Ok(home) = etcetera::home_dir() {
        let local = home.join(".local");
        places.push(Place::new(format!("{}/lib/python3*", local.display()), wheels(site_packages(&local))));
        let pyenv = variable("PYENV_ROOT").unwrap_or_else(|| home.join(".pyenv")).join("versions");
        let versions = matching(&pyenv, "3").flat_map(|version| site_packages(&version));
        places.push(Place::new(format!("{}/3*", pyenv.display()), wheels(versions.collect())));
    }
    if cfg!(unix) {
        for root in ["/usr/local", "/usr"] {
            places.push(Place::new(format!("{root}/lib/python3*"), wheels(site_packages(Path::new(root)))));
        }
    }
    places
}

/// The packages of the `python3` of the command line.
fn python() -> Place {
    let script = "import sys; print('\\n'.join(sys.path))";
    let output = std::process::Command::new("python3").args(["-c", script]).stdin(std::process::Stdio::null()).output();
    let paths = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let folders = paths.lines().filter(|path| !path.is_empty()).map(PathBuf::from).collect();
    Place::new("python3's packages", wheels(folders))
}

/// Folders of Python packages below `root`.
fn site_packages(root: &Path) -> Vec<PathBuf> {
    let unix = matching(&root.join("lib"), "python3")
        .flat_map(|lib| ["site-packages", "dist-packages"].map(|name| lib.join(name)));
    unix.chain([root.join("Lib/site-packages")]).collect()
}

fn wheels(packages: Vec<PathBuf>) -> impl Iterator<Item = PathBuf> {
    packages.into_iter().flat_map(|folder| WHEELS.iter().map(move |inner| folder.join(inner)))
}

/// NVRTC's files in `folder`, the newest first; a file once, whatever its links.
fn libraries(folder: &Path) -> Vec<PathBuf> {
    let mut seen = Vec::new();
    let mut files =
        matching(folder, PREFIX).filter(|file| !file.to_string_lossy().contains(".alt.")).collect::<Vec<_>>();
    files.retain(|file| {
        let real = fs::canonicalize(file).unwrap_or_default();
        let new = file.is_file() && !seen.contains(&real);
        seen.push(real);
        new
    });
    files
}

/// Entries of `folder` whose names begin with `prefix`, in falling order of name.
fn matching(folder: &Path, prefix: &str) -> impl Iterator<Item = PathBuf> + use<> {
    let name = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.filter(|entry| name(entry).starts_with(prefix)).map(|entry| entry.path()).collect();
    names.sort_by(|a, b| b.cmp(a));
    names.into_iter()
}

fn not_found(looked: &[String], driver_version: Option<u32>) -> String {
    let wheel = match driver_version {
        Some(driver) if driver < 13000 => "`pip install nvidia-cuda-nvrtc-cu12==12.9.*`".to_owned(),
        Some(_) => "`pip install nvidia-cuda-nvrtc==13.0.*`".to_owned(),
        None => "`pip install nvidia-cuda-nvrtc==13.0.*`, or for drivers before 580 \
                 `pip install nvidia-cuda-nvrtc-cu12==12.9.*`"
            .to_owned(),
    };
    let driver = driver_version.map(|driver| format!(" for a driver of CUDA {}", version(driver))).unwrap_or_default();
    format!(
        "NVRTC, which compiles the kernels{driver}, is not found. Get it by {wheel}, or name its file or folder in \
         {NVRTC_VARIABLE}, or use kernels compiled elsewhere (`unfreeze kernels build`, UNFREEZE_KERNELS). Looked at:\n{}",
        looked.join("\n")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_told_from_what_lies_beside_them() {
        let folder = tempfile::tempdir().unwrap();
        let names =
            ["libnvrtc.so.12", "libnvrtc.so.13", "libnvrtc.alt.so.13", "libnvrtc-builtins.so.13.0", "libcuda.so"];
        names.iter().for_each(|name| fs::write(folder.path().join(name), name).unwrap());
        if cfg!(target_os = "linux") {
            #[cfg(unix)]
            std::os::unix::fs::symlink("libnvrtc.so.13", folder.path().join("libnvrtc.so")).unwrap();
            let found = libraries(folder.path());
            let found: Vec<_> = found.iter().map(|file| file.file_name().unwrap().to_str().unwrap()).collect();
            assert_eq!(found, ["libnvrtc.so.13", "libnvrtc.so.12"]);
        }
    }

    #[test]
    fn the_error_says_where_and_how() {
        let text = not_found(&["  /opt/cuda*: nothing".into()], Some(12040));
        assert!(text.contains("for a driver of CUDA 12.4") && text.contains("nvrtc-cu12==12.9"), "{text}");
        assert!(text.contains("/opt/cuda*: nothing") && text.contains(NVRTC_VARIABLE), "{text}");
        assert!(not_found(&[], Some(13000)).contains("nvidia-cuda-nvrtc==13.0"));
    }
}
