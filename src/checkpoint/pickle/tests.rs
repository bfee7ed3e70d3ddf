use std::collections::BTreeSet;

use super::*;

/// What Python pickled, and what its own unpickler imports for it; written by `tests/checkpoints/pickles.py`.
#[derive(serde::Deserialize)]
struct Original {
    what: String,
    hex: String,
    imports: BTreeSet<String>,
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).expect("is hex")).collect()
}

fn imports(pickle: &Pickle) -> BTreeSet<String> {
    pickle.imports.iter().map(Global::to_string).collect()
}

#[test]
fn pythons_own_pickles_end_and_import_what_python_says() {
    let originals: Vec<Original> =
        serde_json::from_str(include_str!("../../../tests/checkpoints/fixtures/pickles.json")).expect("parses");
    assert!(originals.len() > 100);
    for Original { what, hex, imports: expected } in originals {
        let bytes = unhex(&hex);
        let pickle = parse(&[&bytes, &b"cos\nsystem\n"[..]].concat()).expect(&what);
        let found = (pickle.end, pickle.length, imports(&pickle));
        assert_eq!(found, (End::Whole, bytes.len(), expected), "{what}");
        for cut in (0..bytes.len()).step_by(1 + bytes.len() / 100) {
            assert!(parse(&bytes[..cut]).is_ok_and(|pickle| pickle.end == End::Cut), "{what} cut at {cut}");
        }
    }
}

#[test]
fn hidden_imports_are_found() {
    let imports = |bytes: &[u8]| Vec::from_iter(imports(&parse(bytes).expect("parses")));
    assert_eq!(imports(b"cos\nsystem\n(S'x'\ntR0N."), ["os.system"]);
    assert_eq!(imports(b"(S'x'\nios\nsystem\n."), ["os.system"]);
    // The names come from the memo, in another order than they were made, past a value that is thrown away.
    let memo = b"\x80\x04\x8c\x06system\x94\x8c\x02os\x94N00h\x01h\x00\x93.";
    assert_eq!(imports(memo), ["os.system"]);
    assert_eq!(imports(b"\x80\x04(\x8c\x02os\x8c\x06system2001\x8c\x02os\x8c\x06system\x93."), ["os.system"]);
    assert!(parse(b"\x80\x04\x8c\x02os\x8c\x03sys\x85\x93.").is_err(), "a computed name");
}

#[test]
fn values_are_told() {
    let number = |bytes: &[u8]| parse(bytes).map(|pickle| pickle.number(pickle.root)).expect("parses");
    assert_eq!(number(b"\x80\x02K\x07."), Some(7));
    assert_eq!(number(b"\x80\x02M\x00\x02."), Some(512));
    assert_eq!(number(b"\x80\x02J\x00\x00\x01\x00."), Some(65536));
    assert_eq!(number(b"I12\n."), Some(12));
    assert_eq!(number(b"L12L\n."), Some(12));
    assert_eq!(number(b"\x80\x02\x8a\x02\x00\xff."), None, "is below zero");
    assert_eq!(number(b"\x80\x02]."), None);
    // {"é": {1: "b"}}, put together after it was memoized.
    let pickle = parse(b"\x80\x02}q\0V\xe9\n}K\x01X\x01\0\0\0bss0h\0.").expect("parses");
    let inner = pickle.get(pickle.root, "é").expect("is there");
    let Value::Dict(entries) = pickle.value(inner) else { panic!("{:?}", pickle.value(inner)) };
    assert_eq!(
        entries.iter().map(|(k, v)| (pickle.number(*k), pickle.key(*v))).collect::<Vec<_>>(),
        [(Some(1), Some("b".into()))]
    );
}

#[test]
fn instructions_and_copies_are_bounded() {
    assert!(parse(&vec![b']'; MAX_INSTRUCTIONS + 1]).is_err_and(|error| error.contains("instructions")));
    // An ordered dictionary of a long list of pairs, made again and again.
    let mut copies = b"\x80\x02(".to_vec();
    copies.extend(b"NN\x86".repeat(10_000));
    copies.extend(b"lq\0");
    copies.extend(b"ccollections\nOrderedDict\nh\0\x85R".repeat(1000));
    copies.push(b'.');
    assert!(parse(&copies).is_err_and(|error| error.contains("copies one list")));
}

#[test]
fn lengths_beyond_the_end_are_no_pickle() {
    for pickle in
        [&b"\x8b\xff\xff\xff\xffx."[..], b"\x8e\xff\xff\xff\xff\xff\xff\xff\xff.", b"T\xff\xff\xff\x7f.", b"S'x'"]
    {
        assert!(parse(pickle).is_ok_and(|pickle| pickle.end == End::Cut));
    }
    for nonsense in [
        &b"tttuuueee000111222RRRbbb\x93"[..],
        b"((((0000001e",
        b"g1\nh\x07jxxxxq\0r\0\0\0\0",
        b"N(0000.",
        b"N(\x85t.",
        b"K\x01K\x02s.",
    ] {
        assert!(parse(nonsense).is_ok_and(|pickle| pickle.end == End::Damaged), "{nonsense:?}");
    }
}
