//! Activations on disk, across processes and by the program's commands.

mod common;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    thread,
    time::Duration,
};

use common::program::{names, unfreeze};
use tempfile::TempDir;
use unfreeze::{
    Error,
    cache::{
        Key, KeyBuilder,
        store::{About, Entry, Store, Stored},
    },
    random::Random,
};

const WIDTH: usize = 1024;
const BUDGET: u64 = 1 << 30;

fn key(text: impl ToString) -> Key {
    KeyBuilder::new("test").text(&text.to_string()).finish()
}

fn about(arch: &str) -> About {
    let text = |text: &str| text.to_owned();
    let (boundary, computed, data) = (text("avgpool"), text("cpu f32"), text("some/photos"));
    About { dims: vec![WIDTH], stored: Stored::F32, arch: text(arch), boundary, size: 224, computed, data }
}

fn row(sample: u64) -> Vec<f32> {
    (0..WIDTH).map(|at| sample as f32 + at as f32 / 4096.0).collect()
}

fn append(entry: &mut Entry, sample: u64) -> unfreeze::Result<()> {
    entry.append(&[key(sample)], &row(sample))
}

/// Whether a sample is there, with its own values.
fn is_there(entry: &Entry, sample: u64) -> bool {
    let mut values = vec![f32::NAN; WIDTH];
    let there = entry.find(&key(sample)).is_some_and(|row| entry.read(row, &mut values).unwrap());
    assert!(!there || values == row(sample), "sample {sample}");
    there
}

/// A store with an entry for each of the names, of so many rows.
fn filled(entries: &[(&str, u64)]) -> (TempDir, Store) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path(), BUDGET).unwrap();
    for (name, rows) in entries {
        let mut entry = store.entry(&key(name), &about(name)).unwrap();
        (0..*rows).for_each(|sample| append(&mut entry, sample).unwrap());
        // File systems keep no finer time.
        thread::sleep(Duration::from_millis(15));
    }
    (folder, store)
}

/// The chunks of a store, by name.
fn chunks(folder: &Path) -> Vec<PathBuf> {
    let entries = names(folder).into_iter().map(|name| folder.join(name));
    let files = entries.flat_map(|entry| names(&entry).into_iter().map(move |name| entry.join(name)));
    files.filter(|file| file.extension().is_some_and(|extension| extension == "chunk")).collect()
}

#[test]
fn list_shows_what_is_kept() {
    let (folder, store) = filled(&[("resnet18", 3), ("resnet34", 5)]);
    let ran = unfreeze("cache list --folder {}", &[folder.path()]).succeeded();
    let lines: Vec<&str> = ran.out.lines().collect();
    assert_eq!(lines.len(), 4, "{}", ran.out);
    let ids: Vec<String> = store.list().unwrap().into_iter().map(|entry| entry.id).collect();
    for (line, id, arch, rows) in [(lines[1], &ids[0], "resnet34", " 5 "), (lines[2], &ids[1], "resnet18", " 3 ")] {
        assert!(line.starts_with(&id[..12]), "{line}");
        for part in [arch, rows, "avgpool", "224", "cpu f32", "f32", "KiB", "ago", "some/photos"] {
            assert!(line.contains(part), "{part}: {line}");
        }
    }
    assert!(lines[3].contains(folder.path().to_str().unwrap()), "{}", lines[3]);

    let objects = unfreeze("cache list --json --folder {}", &[folder.path()]).succeeded().objects();
    assert_eq!(objects.len(), 2);
    let bytes: u64 = chunks(folder.path()).iter().map(|file| fs::metadata(file).unwrap().len()).sum();
    assert_eq!(objects.iter().map(|entry| entry["bytes"].as_u64().unwrap()).sum::<u64>(), bytes);
    assert_eq!((objects[0]["id"].as_str().unwrap(), &objects[0]["rows"]), (&ids[0][..], &5.into()));
    assert_eq!((&objects[1]["dims"][0], &objects[1]["chunks"]), (&WIDTH.into(), &1.into()));
}

#[test]
fn verify_names_what_is_damaged_and_removes_it_when_told() {
    let (folder, store) = filled(&[("resnet18", 3), ("resnet34", 5), ("resnet50", 2)]);
    let ran = unfreeze("cache verify --folder {}", &[folder.path()]).succeeded();
    assert!(ran.out.contains("checked: 3"), "{}", ran.out);
    let files = chunks(folder.path());
    // One in its last value, one in its head.
    for (file, at) in [(&files[0], fs::metadata(&files[0]).unwrap().len() as usize - 1), (&files[1], 40)] {
        let mut bytes = fs::read(file).unwrap();
        bytes[at] ^= 1;
        fs::write(file, bytes).unwrap();
    }
    for remove in ["", " --remove"] {
        let ran = unfreeze(&format!("cache verify --folder {{}}{remove}"), &[folder.path()]);
        assert_eq!(ran.code, 1, "{}", ran.err);
        let named = |file: &PathBuf| ran.out.contains(file.to_str().unwrap());
        assert!(named(&files[0]) && named(&files[1]) && !named(&files[2]), "{}", ran.out);
        assert!(ran.err.contains("2 of 3 files"), "{}", ran.err);
        assert_eq!(chunks(folder.path()).len(), if remove.is_empty() { 3 } else { 1 });
        // Listed are those that can be told what they are.
        unfreeze("cache list --folder {}", &[folder.path()]).succeeded();
    }
    let objects = unfreeze("cache verify --json --folder {}", &[folder.path()]).succeeded().objects();
    assert!(objects.len() == 1 && objects[0]["chunks"] == 1 && objects[0]["damaged"] == 0, "{objects:?}");
    assert_eq!(store.list().unwrap().iter().map(|entry| entry.chunks).sum::<usize>(), 1);
}

#[test]
fn clear_removes_what_is_named_and_nothing_else() {
    let (folder, store) = filled(&[("resnet18", 3), ("resnet34", 5), ("resnet50", 2)]);
    let entries = store.list().unwrap();
    let clear = |arguments: &str| unfreeze(&format!("cache clear --folder {{}} {arguments}"), &[folder.path()]);
    for id in ["zz", "../x", &format!("{}0", entries[0].id)] {
        let ran = clear(&format!("{} {id}", entries[0].id));
        assert!(ran.code == 2 && ran.err.contains("no entry") && ran.out.is_empty(), "{id}: {}", ran.err);
    }
    for (arguments, cause) in
        [("", "<ID|--all"), ("--all abc", "cannot be used with"), ("--all --data x", "cannot be used with")]
    {
        let ran = clear(arguments);
        assert!(ran.code == 2 && ran.err.contains(cause), "{arguments}: {}", ran.err);
    }
    assert_eq!(store.list().unwrap(), entries, "nothing was removed");

    let ran = clear(&format!("{} {}", &entries[1].id[..8], entries[1].id.to_uppercase())).succeeded();
    assert!(ran.out.starts_with(&entries[1].id[..12]) && ran.out.lines().count() == 2, "{}", ran.out);
    assert_eq!(store.list().unwrap(), [entries[0].clone(), entries[2].clone()]);
    // Two that begin alike.
    let alike = folder.path().join(format!("{}{}", &entries[0].id[..20], "0".repeat(12)));
    fs::create_dir(&alike).unwrap();
    let ran = clear(&entries[0].id[..20]);
    assert!(ran.code == 2 && ran.err.contains("more digits"), "{}", ran.err);
    let objects = clear("--all --json").succeeded().objects();
    let freed: u64 = objects.iter().map(|entry| entry["bytes"].as_u64().unwrap()).sum();
    assert_eq!(freed, entries[0].bytes + entries[2].bytes);
    assert_eq!(names(folder.path()), [".lock"]);
    let ran = clear("--all").succeeded();
    assert!(ran.out.is_empty() && ran.err.contains(folder.path().to_str().unwrap()), "{}", ran.err);
}

#[test]
fn clear_removes_what_is_of_a_folder_and_leaves_the_rest_of_the_entry() {
    let (folder, store) = filled(&[("resnet34", 5)]);
    for (data, samples) in [("/photos/a", 0..3), ("/photos/b", 3..5)] {
        let about = About { data: data.into(), ..about("resnet18") };
        let mut entry = store.entry(&key("resnet18"), &about).unwrap();
        samples.for_each(|sample| append(&mut entry, sample).unwrap());
    }
    let clear = |data: &str| unfreeze(&format!("cache clear --folder {{}} --data {data} --json"), &[folder.path()]);
    let left = || {
        let entry = store.entry(&key("resnet18"), &about("resnet18")).unwrap();
        (0..6).filter(|sample| is_there(&entry, *sample)).collect::<Vec<u64>>()
    };
    let unknown = clear("/photos");
    assert!(unknown.code == 2 && unknown.err.contains("cache list"), "{}", unknown.err);
    assert_eq!(left(), [0, 1, 2, 3, 4]);
    let removed = clear("/photos/a/").succeeded().objects();
    assert!(removed.len() == 1 && removed[0]["bytes"].as_u64().unwrap() > 3 * 4 * WIDTH as u64, "{removed:?}");
    assert_eq!(left(), [3, 4]);
    clear("/photos/b").succeeded();
    assert_eq!((left(), store.list().unwrap().len()), (vec![], 1));
}

#[test]
fn the_folder_is_found_and_a_wrong_one_named() {
    let (folder, _) = filled(&[]);
    let parent = tempfile::tempdir().unwrap();
    let user = |arguments: &str| {
        let mut command = common::program::command(arguments, &[]);
        common::program::ran(command.env("UNFREEZE_CACHE", parent.path()).output().unwrap())
    };
    let place = parent.path().join("activations");
    for arguments in ["cache list", "cache verify", "cache clear --all"] {
        let ran = user(arguments).succeeded();
        assert!(ran.err.contains(place.to_str().unwrap()) && !place.exists(), "{}", ran.err);
    }
    fs::rename(folder.path(), &place).unwrap();
    let store = Store::open(&place, BUDGET).unwrap();
    append(&mut store.entry(&key("a"), &about("resnet18")).unwrap(), 0).unwrap();
    assert!(user("cache list").succeeded().out.contains("resnet18"));

    let file = parent.path().join("file");
    fs::write(&file, "mine").unwrap();
    for arguments in ["list", "verify --remove", "clear --all"] {
        for (place, cause) in [(&file, "is not a folder"), (&parent.path().join("gone"), "there is no such folder")] {
            let ran = unfreeze(&format!("cache {arguments} --folder {{}}"), &[place]);
            assert!(ran.code == 1 && ran.err.contains(cause), "{arguments}: {}", ran.err);
            assert!(ran.err.contains(place.to_str().unwrap()) && ran.out.is_empty(), "{}", ran.err);
        }
    }
    assert_eq!(fs::read(&file).unwrap(), b"mine");
}

/// What a child process does, and the store that it does it to.
const CHILD: &str = "UNFREEZE_TEST_CHILD";

/// This test in a process of its own, after a shell has run `before`.
fn child(task: &str, folder: &Path, before: &str) -> Command {
    let mut command = Command::new("sh");
    command.arg("-c").arg(format!("{before}; exec \"$0\" \"$@\"")).arg(env::current_exe().unwrap());
    command.args(["--exact", "works_as_a_child", "--nocapture"]);
    command.env(CHILD, format!("{task} {}", folder.display())).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

#[track_caller]
fn succeeded(output: &Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Does nothing unless another test has started it.
#[test]
fn works_as_a_child() {
    let Ok(task) = env::var(CHILD) else { return };
    let (task, folder) = task.split_once(' ').unwrap();
    match task {
        "fill" => fill(Path::new(folder)),
        "share" => share(Path::new(folder)),
        "full" => full(Path::new(folder)),
        _ => read_only(Path::new(folder)),
    }
}

const SAMPLES: u64 = 100;

/// Adds what is missing, a chunk for every sample.
fn fill(folder: &Path) {
    let store = Store::open(folder, BUDGET).unwrap();
    let mut entry = store.entry(&key("filled"), &about("resnet18")).unwrap();
    for sample in 0..SAMPLES {
        if !is_there(&entry, sample) {
            append(&mut entry, sample).unwrap();
            entry.flush().unwrap();
        }
    }
    assert_eq!(entry.notes(), [""; 0]);
}

#[cfg(unix)]
#[test]
fn a_fill_that_is_killed_goes_on_where_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let mut random = Random::stream(11, "moments", &[]);
    let (mut kills, mut rows) = (0, 0);
    loop {
        let mut child = child("fill", folder.path(), ":").spawn().unwrap();
        thread::sleep(Duration::from_micros(random.uniform(3e3, 40e3) as u64));
        let finished = child.try_wait().unwrap();
        child.kill().unwrap();
        let output = child.wait_with_output().unwrap();
        if finished.is_some() {
            succeeded(&output);
            break;
        }
        let store = Store::open(folder.path(), BUDGET).unwrap();
        let entry = store.entry(&key("filled"), &about("resnet18")).unwrap();
        let found = (0..SAMPLES).filter(|sample| is_there(&entry, *sample)).count();
        assert!(found >= rows && entry.notes().is_empty(), "{found} after {rows}: {:?}", entry.notes());
        kills += usize::from(0 < found && found < SAMPLES as usize);
        rows = found;
        let left: Vec<String> = names(folder.path()).iter().flat_map(|name| names(&folder.path().join(name))).collect();
        assert!(!left.iter().any(|name| name.starts_with(".unfreeze-")), "{left:?}");
    }
    let store = Store::open(folder.path(), BUDGET).unwrap();
    let listed = store.list().unwrap();
    assert_eq!((listed.len(), listed[0].rows as u64), (1, SAMPLES));
    assert!(kills > 0, "none came in between");
    assert!(store.verify(false).unwrap().damaged.is_empty());
}

/// Uses two entries that do not both fit, again and again.
fn share(folder: &Path) {
    let store = Store::open(folder, 150 << 10).unwrap();
    let mut random = Random::stream(std::process::id().into(), "share", &[]);
    let mut found = 0;
    for _ in 0..40 {
        let name = if random.chance(0.5) { "a" } else { "b" };
        let mut entry = store.entry(&key(name), &about(name)).unwrap();
        for sample in 0..20 {
            if is_there(&entry, sample) {
                found += 1;
            } else if let Err(error) = append(&mut entry, sample) {
                assert!(matches!(error, Error::Data { .. }), "{error}");
            }
        }
        if let Err(error) = entry.flush() {
            assert!(matches!(error, Error::Data { .. }), "{error}");
        }
        found += (0..20).filter(|sample| is_there(&entry, *sample)).count();
        assert_eq!(entry.notes(), [""; 0]);
    }
    assert!(found > 0);
}

#[test]
fn processes_share_a_store_that_is_too_small_for_them() {
    let folder = tempfile::tempdir().unwrap();
    let mut children: Vec<_> = (0..2).map(|_| child("share", folder.path(), ":").spawn().unwrap()).collect();
    while children.iter_mut().any(|child| child.try_wait().unwrap().is_none()) {
        unfreeze("cache clear --all --folder {}", &[folder.path()]).succeeded();
        unfreeze("cache list --folder {}", &[folder.path()]).succeeded();
    }
    children.into_iter().for_each(|child| succeeded(&child.wait_with_output().unwrap()));
    let store = Store::at(folder.path()).unwrap();
    assert!(store.list().unwrap().iter().map(|entry| entry.bytes).sum::<u64>() <= 150 << 10);
    assert!(store.verify(false).unwrap().damaged.is_empty());
}

/// Two chunks fit onto the disk and one that is larger does not.
fn full(folder: &Path) {
    let store = Store::open(folder, BUDGET).unwrap();
    let mut entry = store.entry(&key("a"), &about("resnet18")).unwrap();
    assert!((0..2).all(|sample| is_there(&entry, sample)));
    append(&mut entry, 2).unwrap();
    entry.flush().unwrap();
    (3..30).for_each(|sample| append(&mut entry, sample).unwrap());
    let error = entry.flush().unwrap_err();
    assert!(matches!(&error, Error::Io { path, .. } if path.starts_with(folder)), "{error}");
    assert!(error.to_string().contains("too large"), "{error}");
    append(&mut entry, 30).unwrap();
    entry.flush().unwrap();
    assert!((0..31).all(|sample| is_there(&entry, sample)));
}

#[cfg(unix)]
#[test]
fn a_disk_that_is_full_leaves_what_was_written() {
    let (folder, store) = filled(&[("a", 2)]);
    // No file may grow beyond so many blocks of 512 bytes, as if the disk were full.
    succeeded(&child("full", folder.path(), "trap '' XFSZ; ulimit -f 100").output().unwrap());
    let entry = store.entry(&key("a"), &about("a")).unwrap();
    assert_eq!((0..40).filter(|sample| is_there(&entry, *sample)).collect::<Vec<_>>(), [0, 1, 2]);
    assert!(entry.notes().is_empty() && chunks(folder.path()).len() == 2);
    let entry_folder = chunks(folder.path())[0].parent().unwrap().to_owned();
    assert_eq!(names(&entry_folder).len(), 3, "{:?}", names(&entry_folder));
}

/// Reads, and fails to write.
fn read_only(folder: &Path) {
    let store = Store::open(folder, BUDGET).unwrap();
    let mut entry = store.entry(&key("a"), &about("resnet18")).unwrap();
    assert!(is_there(&entry, 0) && is_there(&entry, 1));
    append(&mut entry, 2).unwrap();
    let error = entry.flush().unwrap_err();
    assert!(matches!(&error, Error::Io { path, .. } if path.starts_with(folder)), "{error}");
    assert!((0..3).all(|sample| is_there(&entry, sample)));
    let mut other = store.entry(&key("other"), &about("resnet18")).unwrap();
    append(&mut other, 0).unwrap();
    assert!(other.flush().is_err() && is_there(&other, 0));
    let listed = store.list().unwrap();
    assert!(store.clear(&listed[0]).is_err());
    assert!(Store::open(folder.join("inside"), BUDGET).is_err());
}

#[cfg(unix)]
#[test]
fn a_folder_that_cannot_be_written_is_read() {
    use std::{io::Write, os::unix::fs::PermissionsExt, os::unix::process::CommandExt};

    let (folder, store) = filled(&[("a", 2)]);
    let entry = folder.path().join(&store.list().unwrap()[0].id);
    let mode = |mode| {
        for path in [&entry, folder.path()] {
            fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
        }
    };
    mode(0o555);
    let mut child = child("read", folder.path(), ":");
    // One who may write everywhere takes the place of one who may not.
    if fs::write(folder.path().join("x"), "").is_ok() {
        fs::remove_file(folder.path().join("x")).unwrap();
        child.uid(65534).gid(65534);
    }
    match child.output() {
        Ok(output) if output.status.code() != Some(126) => succeeded(&output),
        _ => drop(writeln!(std::io::stderr(), "SKIPPED: this user cannot become one who may not write")),
    }
    mode(0o755);
    assert_eq!(store.list().unwrap()[0].rows, 2);
}
