//! Published weights are found, or fetched from a server that does not always do what it should.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc, Barrier,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use tempfile::TempDir;
use unfreeze::{
    Error, Result,
    checkpoint::catalog::{self, Entry, Fetching, Folders},
};

use crate::{
    common::program::names,
    server::{Server, answer, cut, file, serve, serve_at_once},
};

/// The SHA-256 of `content()`, by Python's hashlib.
const HASH: &str = "f8d50b7bfd275bc87e10b9cd1398f0fdd104898fb021767fe71cd7964aeabf4f";

fn content() -> Vec<u8> {
    (0..100_000_u64).map(|i| ((i * i * 31 + i) / 7 % 251) as u8).collect()
}

/// An entry for a server without encryption, which no catalogue may name.
fn entry(url: &str, sha256: Option<&str>) -> Entry {
    let mut entry = catalog::entry("resnet18.v1").unwrap().clone();
    (entry.name, entry.url, entry.sha256) = ("resnet18.test".into(), url.into(), sha256.map(Into::into));
    entry
}

/// Empty folders.
struct Home {
    folders: Folders,
    _root: TempDir,
}

fn home() -> Home {
    let root = tempfile::tempdir().unwrap();
    let at = |name: &str| root.path().join(name);
    let folders = Folders { own: at("own"), torch: Some(at("torch")), hub: Some(at("hub")) };
    Home { folders, _root: root }
}

impl Home {
    fn own(&self, name: &str) -> PathBuf {
        self.folders.own.join(name)
    }

    /// What an earlier attempt has left.
    fn interrupted(self, part: &[u8], version: &str) -> Self {
        fs::create_dir_all(&self.folders.own).unwrap();
        fs::write(self.own("w.pth.part"), part).unwrap();
        fs::write(self.own("w.pth.part.etag"), version).unwrap();
        self
    }

    /// Fetches `w.pth`, of which the first digits of the hash are known.
    fn fetch(&self, server: &Server) -> Result<PathBuf> {
        entry(&format!("{}/models/w.pth", server.address), Some(&HASH[..8])).obtain(&self.folders, &mut |_| {})
    }

    /// The file lies there with the note of its hash, and nothing else but the folder of locks.
    #[track_caller]
    fn holds_the_file(&self, path: &Path) {
        assert!(fs::read(path).unwrap() == content());
        let name = path.file_name().unwrap().to_str().unwrap();
        let note = format!("{name}.sha256");
        assert_eq!(names(&self.folders.own), [".locks", name, &note]);
        assert_eq!(fs::read_to_string(self.own(&note)).unwrap(), format!("{HASH}  {name}\n"));
    }
}

#[test]
fn a_file_is_fetched_once_and_its_progress_told() {
    let (home, server) = (home(), serve(|_, request| file(request, &content(), "\"a\"")));
    let entry = entry(&format!("{}/models/w.pth", server.address), Some(HASH));
    let mut last = None;
    let tell = &mut |event: Fetching| {
        if let Fetching::Progress { done, total } = event {
            assert!(Some(done) >= last && total == Some(100_000));
            last = Some(done);
        }
    };
    assert_eq!(entry.find(&home.folders), None);
    let path = entry.obtain(&home.folders, tell).unwrap();
    assert_eq!((&path, last), (&home.own("w.pth"), Some(100_000)));
    home.holds_the_file(&path);
    assert_eq!(entry.obtain(&home.folders, &mut |event| panic!("{event:?}")).unwrap(), path);
    assert_eq!(entry.find(&home.folders), Some(path));
    assert_eq!(server.asked().len(), 1);
}

#[test]
fn a_cut_connection_is_resumed_where_it_was_cut() {
    let home = home();
    let server = serve(|number, request| match number {
        0 => cut(file(request, &content(), "\"a\""), 40_000),
        1 => cut(file(request, &content(), "\"a\""), 10),
        _ => file(request, &content(), "\"a\""),
    });
    home.holds_the_file(&home.fetch(&server).unwrap());
    let asked = server.asked();
    let headers = |name| asked.iter().map(|request| request.header(name)).collect::<Vec<_>>();
    assert_eq!(headers("range"), [None, Some("bytes=40000-"), Some("bytes=40010-")]);
    assert_eq!(headers("if-range"), [None, Some("\"a\""), Some("\"a\"")]);
}

#[test]
fn an_earlier_attempt_is_gone_on_with_only_if_the_file_is_the_same() {
    let server = serve(|_, request| file(request, &content(), "\"b\""));
    // The same; another version; all of it; and more than there is.
    for (part, version, requests) in [
        (&content()[..70_000], "\"b\"", 1),
        (&[7; 70_000][..], "\"a\"", 1),
        (&content()[..], "\"b\"", 1),
        (&[7; 200_000][..], "\"b\"", 2),
    ] {
        let (home, before) = (home().interrupted(part, version), server.asked().len());
        home.holds_the_file(&home.fetch(&server).unwrap());
        assert_eq!(server.asked().len() - before, requests, "{version}, {}", part.len());
    }
    // The same by the server's word, but not by the hash: once more, from the beginning.
    let home = home().interrupted(&[7; 70_000], "\"b\"");
    let before = server.asked().len();
    home.holds_the_file(&home.fetch(&server).unwrap());
    assert_eq!(server.asked()[before + 1].header("range"), None);
    // A part of which nobody knows what it is of.
    let home = home.interrupted(&content()[..70_000], "");
    fs::remove_file(home.own("w.pth.part.etag")).unwrap();
    fs::remove_file(home.own("w.pth")).unwrap();
    home.holds_the_file(&home.fetch(&server).unwrap());
    assert_eq!(server.asked().last().unwrap().header("range"), None);
}

#[test]
fn a_server_without_ranges_sends_all_again() {
    let home = home();
    let server = serve(|number, _| {
        let all = answer("200 OK", &["Last-Modified: Sat, 28 Nov 2020 10:00:00 GMT"], &content());
        if number == 0 { cut(all, 30_000) } else { all }
    });
    let (mut last, mut told) = (0, Vec::new());
    let tell = &mut |event: Fetching| match event {
        Fetching::Progress { done, .. } => {
            assert!(done >= last || told.last() == Some(&"afresh"), "{done} after {last}, {told:?}");
            last = done;
        }
        Fetching::Resuming { .. } => told.push("resuming"),
        Fetching::Afresh { .. } => told.push("afresh"),
        _ => {}
    };
    let entry = entry(&format!("{}/models/w.pth", server.address), Some(HASH));
    home.holds_the_file(&entry.obtain(&home.folders, tell).unwrap());
    assert_eq!(told, ["resuming", "afresh"]);
    assert_eq!(server.asked()[1].header("if-range"), Some("Sat, 28 Nov 2020 10:00:00 GMT"));
}

#[test]
fn a_busy_server_is_asked_again_but_not_for_ever() {
    let busy = |times: usize, status: &'static str, after: &'static str| {
        serve(move |number, request| match number < times {
            true => answer(status, &[&format!("Retry-After: {after}")], b"later"),
            false => file(request, &content(), "\"a\""),
        })
    };
    let (home, server) = (home(), busy(2, "429 Too Many Requests", "0"));
    home.holds_the_file(&home.fetch(&server).unwrap());
    for (status, after, requests) in
        [("503 Service Unavailable", "0", 5), ("503 Service Unavailable", "3600", 1), ("404 Not Found", "0", 1)]
    {
        let (home, server) = (self::home(), busy(100, status, after));
        let error = home.fetch(&server).unwrap_err().to_string();
        assert!(error.contains(status), "{error}");
        assert_eq!(server.asked().len(), requests, "{status}, {after}");
        assert_eq!(names(&home.folders.own), [".locks"]);
    }
}

#[test]
fn what_lies_in_the_place_of_the_file_is_not_fetched_over() {
    let (home, server) = (home(), serve(|_, request| file(request, &content(), "\"a\"")));
    fs::create_dir_all(home.own("w.pth")).unwrap();
    let error = home.fetch(&server).unwrap_err().to_string();
    assert!(error.starts_with(&home.own("w.pth").display().to_string()) && error.contains("remove it"), "{error}");
    assert!(server.asked().is_empty());
}

#[test]
fn what_is_not_the_published_file_is_not_kept() {
    let fails = |server: &Server, cause: &str| {
        let home = home();
        let error = home.fetch(server).unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, Error::Checkpoint { .. }) && text.contains(cause), "{text}");
        // Says what to do.
        let place = home.own("w.pth").display().to_string();
        let url = format!("download {}/models/w.pth", server.address);
        assert!(text.starts_with(&place) && text.contains(&url), "{text}");
        assert_eq!(names(&home.folders.own), [".locks"]);
    };
    // Of a thousand bytes, by Python's hashlib.
    let short = serve(|_, request| file(request, &content()[..1000], "\"a\""));
    fails(&short, "sha256 is 279dc07ae0ffaa20184a8d6be90ba417db5b28c8b5576ecde1b4515ad860f1fc, not f8d50b7b");
    fails(&serve(|_, _| answer("404 Not Found", &[], b"gone")), "404 Not Found");
    fails(&serve(|_, _| b"no HTTP at all\r\n\r\n".to_vec()), "/models/w.pth: ");
    fails(&serve(|_, _| Vec::new()), "/models/w.pth: ");
    fails(&serve(|_, _| answer("200 OK", &["Content-Length: 5000000000"], b"x")), "more than a checkpoint can be");
    fails(
        &serve(|_, _| answer("206 Partial Content", &["Content-Range: bytes 5-9/10"], b"12345")),
        "was not asked for",
    );
    fails(&serve(|_, _| answer("302 Found", &["Location: /models/w.pth"], b"")), "more than 10 redirects");
    fails(&serve(|_, _| answer("302 Found", &[], b"")), "redirects to nowhere");
    fails(
        &serve(|_, _| answer("302 Found", &["Location: file:///etc/passwd"], b"")),
        "'file:///etc/passwd' is no address of HTTP",
    );
    fails(&Server::gone(), "/models/w.pth: ");
}

#[test]
fn the_hash_is_the_one_that_the_server_asked_tells() {
    let (told, other) =
        (format!("X-Linked-Etag: \"{HASH}\""), format!("X-Linked-Etag: \"{}\"", HASH.replace('f', "0")));
    let server = serve(move |_, request| match request.path.as_str() {
        "/a/model.safetensors" => {
            answer("307 Temporary Redirect", &[told.as_str(), "Location: ../b/model.safetensors"], b"")
        }
        "/b/model.safetensors" | "/a/../b/model.safetensors" => {
            answer("302 Found", &[other.as_str(), "Location: /stored?as=http://x/y"], b"")
        }
        "/stored?as=http://x/y" => file(request, &content(), "\"a\""),
        path => answer("404 Not Found", &[], path.as_bytes()),
    });
    let home = home();
    let fetch = |path: &str| entry(&format!("{}{path}", server.address), None).obtain(&home.folders, &mut |_| {});
    home.holds_the_file(&fetch("/a/model.safetensors").unwrap());
    fs::remove_file(home.own("model.safetensors")).unwrap();
    fs::remove_file(home.own("model.safetensors.sha256")).unwrap();
    let away = serve(move |_, _| {
        let elsewhere = format!("Location: {}/a/model.safetensors", server.address);
        answer("302 Found", &[&elsewhere], b"")
    });
    let untold = serve(|_, _| answer("200 OK", &["X-Linked-Etag: \"git-object\""], &content()));
    for server in [away, untold] {
        let entry = entry(&format!("{}/model.safetensors", server.address), None);
        let error = entry.obtain(&home.folders, &mut |_| {}).unwrap_err().to_string();
        assert!(error.contains("does not tell the file's sha256"), "{error}");
        assert_eq!(names(&home.folders.own), [".locks"]);
    }
}

#[test]
fn a_file_is_compared_with_the_hash_that_was_noted() {
    let told = format!("X-Linked-Etag: \"{HASH}\"");
    let server = serve(move |_, _| answer("200 OK", &[&told], &content()));
    let home = home();
    let entry = entry(&format!("{}/model.safetensors", server.address), None);
    let (path, note) = (home.own("model.safetensors"), home.own("model.safetensors.sha256"));
    let obtain = || {
        let mut left = Vec::new();
        let tell = &mut |event: Fetching| {
            if let Fetching::PassedOver { reason, .. } = event {
                left.push(reason.to_string());
            }
        };
        assert_eq!(entry.obtain(&home.folders, tell).unwrap(), path);
        (left, server.asked().len())
    };
    assert_eq!(obtain(), (vec![], 1));
    assert_eq!(obtain(), (vec![], 1));
    for damage in [&path, &note] {
        fs::write(damage, b"damaged").unwrap();
        let before = server.asked().len();
        let (left, asked) = obtain();
        assert!(left.len() == 1 && left[0].contains("sha256") && asked == before + 1, "{left:?}");
        home.holds_the_file(&path);
    }
    // As other programs write it; and without any, put there by hand.
    fs::write(&note, format!("SHA256 (model.safetensors) = {}\n", HASH.to_uppercase())).unwrap();
    assert_eq!(obtain(), (vec![], 3));
    fs::write(&path, b"another").unwrap();
    fs::remove_file(&note).unwrap();
    assert_eq!(obtain(), (vec![], 3));
}

/// As on a file system that knows none.
#[test]
fn without_locks_each_fetches_the_file() {
    let (home, started) = (home(), Barrier::new(2));
    fs::create_dir_all(&home.folders.own).unwrap();
    fs::write(home.own(".locks"), b"").unwrap();
    let requests = Arc::new(Barrier::new(2));
    let server = serve_at_once(move |_, request| {
        requests.wait();
        file(request, &content(), "\"a\"")
    });
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                started.wait();
                assert!(fs::read(home.fetch(&server).unwrap()).unwrap() == content());
            });
        }
    });
    home.holds_the_file(&home.own("w.pth"));
    assert_eq!(server.asked().len(), 2);
}

#[test]
fn two_at_once_fetch_one_file() {
    let (home, started) = (home(), Barrier::new(2));
    let waiting = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&waiting);
    let server = serve(move |_, request| {
        // One of them has begun. It gets its answer when the other waits.
        while !seen.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(5));
        }
        file(request, &content(), "\"a\"")
    });
    let entry = entry(&format!("{}/models/w.pth", server.address), Some(HASH));
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                started.wait();
                let tell = &mut |event: Fetching| {
                    if let Fetching::Waiting { .. } = event {
                        waiting.store(true, Ordering::SeqCst);
                    }
                };
                home.holds_the_file(&entry.obtain(&home.folders, tell).unwrap());
            });
        }
    });
    assert_eq!(server.asked().len(), 1);
}

#[test]
fn files_of_other_programs_are_used_if_they_are_whole() {
    let server = serve(|_, request| file(request, &content(), "\"a\""));
    let home = home();
    let torch = home.folders.torch.clone().unwrap();
    fs::create_dir_all(&torch).unwrap();
    fs::write(torch.join("w.pth"), content()).unwrap();
    assert_eq!(home.fetch(&server).unwrap(), torch.join("w.pth"));
    assert!(server.asked().is_empty());

    fs::write(torch.join("w.pth"), &content()[1..]).unwrap();
    let mut left = Vec::new();
    let entry = entry(&format!("{}/models/w.pth", server.address), Some(HASH));
    let tell = &mut |event: Fetching| {
        if let Fetching::PassedOver { path, reason } = event {
            left.push((path.to_owned(), reason.ends_with(&format!("not {HASH}"))));
        }
    };
    home.holds_the_file(&entry.obtain(&home.folders, tell).unwrap());
    assert_eq!(left, [(torch.join("w.pth"), true)]);

    // The own file comes first, and is fetched again where it is damaged.
    fs::write(home.own("w.pth"), b"damaged").unwrap();
    home.holds_the_file(&home.fetch(&server).unwrap());
    assert_eq!(server.asked().len(), 2);
}

/// The cache of the Hub: snapshots of links into `blobs`, whose names are hashes.
#[cfg(unix)]
#[test]
fn files_of_the_hub_are_used_if_they_are_what_their_name_says() {
    let home = home();
    let folder = home.folders.hub.clone().unwrap().join("models--timm--resnet18.a1_in1k");
    let snapshot = |revision: &str, hash: &str| {
        let snapshot = folder.join("snapshots").join(revision);
        fs::create_dir_all(&snapshot).unwrap();
        fs::create_dir_all(folder.join("blobs")).unwrap();
        fs::write(folder.join("blobs").join(hash), content()).unwrap();
        std::os::unix::fs::symlink(Path::new("../../blobs").join(hash), snapshot.join("model.safetensors")).unwrap();
        snapshot.join("model.safetensors")
    };
    let entry = catalog::entry("resnet18.a1_in1k").unwrap();
    assert_eq!(entry.find(&home.folders), None);
    let damaged = snapshot("111", &HASH.replace('f', "0"));
    let whole = snapshot("222", HASH);
    fs::create_dir_all(folder.join("refs")).unwrap();
    for (main, expected) in [("222", &whole), ("111", &damaged)] {
        fs::write(folder.join("refs/main"), main).unwrap();
        assert_eq!(entry.find(&home.folders).as_ref(), Some(expected));
        assert_eq!(entry.obtain(&home.folders, &mut |_| {}).unwrap(), whole);
    }
    assert!(!home.folders.own.exists());
}
