//! What the program makes of the machine around it: variables, proxies, other processes.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use sha2::{Digest, Sha256};

use crate::{
    common::program::{Ran, command, names, ran},
    server::{answer, proxy, serve_at_once},
};

/// The program with these variables alone of all that it heeds.
fn program(arguments: &str, home: &Path, variables: &[(&str, PathBuf)]) -> Command {
    let mut command = command(arguments, &[]);
    for variable in ["TORCH_HOME", "HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME", "HF_ENDPOINT"]
    {
        command.env_remove(variable);
    }
    for variable in ["HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE"] {
        command.env_remove(variable).env_remove(variable.to_lowercase());
    }
    command.env("HOME", home).env("UNFREEZE_CACHE", home.join("own"));
    for (variable, value) in variables {
        command.env(variable, value);
    }
    command.stdin(Stdio::null());
    command
}

fn run(arguments: &str, home: &Path, variables: &[(&str, PathBuf)]) -> Ran {
    ran(program(arguments, home, variables).output().unwrap())
}

#[test]
fn each_variable_of_other_programs_leads_to_their_files() {
    let root = tempfile::tempdir().unwrap();
    let at = |path: &str| root.path().join(path);
    let torch = "hub/checkpoints/resnet18-f37072fd.pth";
    let hub = "models--timm--resnet18.a1_in1k/snapshots/1234/model.safetensors";
    for (number, (variable, value, file)) in [
        ("TORCH_HOME", "t", format!("t/{torch}")),
        ("XDG_CACHE_HOME", "x", format!("x/torch/{torch}")),
        ("LANG", "", format!("home/.cache/torch/{torch}")),
        ("TORCH_HOME", "~/u", format!("home/u/{torch}")),
        ("HF_HUB_CACHE", "h", format!("h/{hub}")),
        ("HUGGINGFACE_HUB_CACHE", "g", format!("g/{hub}")),
        ("HF_HOME", "f", format!("f/hub/{hub}")),
        ("XDG_CACHE_HOME", "x", format!("x/huggingface/hub/{hub}")),
        ("LANG", "", format!("home/.cache/huggingface/hub/{hub}")),
        ("UNFREEZE_CACHE", "o", "o/weights/resnet18-f37072fd.pth".into()),
    ]
    .into_iter()
    .enumerate()
    {
        // Another folder for each, so that none finds what is another's.
        let file = at(&number.to_string()).join(file);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, b"not looked at").unwrap();
        let name = if file.ends_with("model.safetensors") { "resnet18.a1_in1k" } else { "resnet18.v1" };
        let value = if value.starts_with('~') { value.into() } else { at(&number.to_string()).join(value) };
        let home = at(&number.to_string()).join("home");
        let ran = run(&format!("weights path {name}"), &home, &[(variable, value)]);
        assert_eq!((ran.out.trim_end(), ran.code), (file.to_str().unwrap(), 0), "{variable}: {}", ran.err);
    }
}

#[test]
fn a_proxy_is_asked_with_name_and_password() {
    let home = tempfile::tempdir().unwrap();
    let hash: String = Sha256::digest(b"weights").iter().map(|byte| format!("{byte:02x}")).collect();
    let server = proxy(
        |tunnel| tunnel.header("proxy-authorization") == Some("Basic bWU6c2VjcmV0"),
        move |_| answer("200 OK", &[&format!("X-Linked-Etag: {hash}")], b"weights"),
    );
    let host = server.address.strip_prefix("http://").unwrap();
    // Where nobody is: only the proxy can be asked for it.
    let hub = ("HF_ENDPOINT", PathBuf::from("http://hub.invalid"));
    let fetch = |proxy: String| {
        run("weights fetch resnet18.a1_in1k", home.path(), &[hub.clone(), ("https_proxy", proxy.into())])
    };
    let refused = fetch(format!("http://{host}"));
    assert!(refused.code == 1 && refused.err.contains("HTTPS_PROXY=http://NAME:PASSWORD@HOST:PORT"), "{}", refused.err);
    fetch(format!("http://me:secret@{host}")).succeeded();
    let asked = server.asked();
    assert_eq!(asked[1].path, "hub.invalid:80");
    assert_eq!(asked[2].path, "/timm/resnet18.a1_in1k/resolve/main/model.safetensors");
    let wrong = fetch("nonsense://me:secret@x".into());
    assert_eq!(wrong.code, 0, "it is here already: {}", wrong.err);
    fs::remove_dir_all(home.path().join("own")).unwrap();
    let wrong = fetch("nonsense://me:secret@x".into());
    assert!(wrong.code == 1 && wrong.err.contains("HTTPS_PROXY holds no address") && !wrong.err.contains("secret"));

    let empty = home.path().join("empty.pem");
    fs::write(&empty, b"").unwrap();
    let uncertain = run("weights fetch resnet18.a1_in1k", home.path(), &[hub.clone(), ("SSL_CERT_FILE", empty)]);
    assert!(uncertain.code == 1 && uncertain.err.contains("no certificate in it"), "{}", uncertain.err);
}

#[test]
fn two_processes_fetch_one_file_once() {
    let home = tempfile::tempdir().unwrap();
    let hash: String = Sha256::digest(b"weights").iter().map(|byte| format!("{byte:02x}")).collect();
    let waiting = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&waiting);
    let server = serve_at_once(move |_, _| {
        // The first gets its answer when the second waits, or after a while in which it should.
        for _ in 0..2000 {
            if seen.load(Ordering::SeqCst) {
                break;
            }
            thread::sleep(Duration::from_millis(5));
        }
        answer("200 OK", &[&format!("X-Linked-Etag: {hash}")], b"weights")
    });
    let variables = [("HF_ENDPOINT", PathBuf::from(&server.address))];
    let start = || {
        let mut program = program("weights fetch resnet18.a1_in1k", home.path(), &variables);
        program.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let (mut one, mut other) = (start(), start());
    let watched = [one.stderr.take().unwrap(), other.stderr.take().unwrap()].map(|lines| {
        let waiting = Arc::clone(&waiting);
        thread::spawn(move || {
            for line in BufReader::new(lines).lines().map_while(Result::ok) {
                waiting.fetch_or(line.starts_with("waiting for another process"), Ordering::SeqCst);
            }
        })
    });
    let file = home.path().join("own/weights/resnet18.a1_in1k.safetensors");
    for process in [one, other] {
        let ran = ran(process.wait_with_output().unwrap()).succeeded();
        assert_eq!(ran.out.trim_end(), file.to_str().unwrap());
    }
    for watcher in watched {
        watcher.join().unwrap();
    }
    assert!(server.asked().len() == 1 && fs::read(&file).unwrap() == b"weights");
    assert_eq!(names(file.parent().unwrap()).len(), 3);
}
