//! ONNX graphs that other exporters could have written: our own small file with fields replaced.

use unfreeze::checkpoint::{CheckpointFile, FileTensor};

use crate::{
    Tensors,
    onnx::{bytes, number, read_bytes, small},
};

/// The fields of a message: number, the whole field, its value.
pub fn fields(mut message: &[u8]) -> Vec<(u64, &[u8], &[u8])> {
    fn varint(bytes: &mut &[u8]) -> u64 {
        let length = bytes.iter().position(|byte| *byte < 128).expect("an end") + 1;
        let (number, rest) = bytes.split_at(length);
        *bytes = rest;
        number.iter().rev().fold(0, |value, byte| value << 7 | u64::from(byte & 127))
    }
    let mut fields = Vec::new();
    while !message.is_empty() {
        let whole = message;
        let tag = varint(&mut message);
        let before = message;
        let (start, length) = match tag & 7 {
            0 => {
                varint(&mut message);
                (0, before.len() - message.len())
            }
            5 => (0, 4),
            _ => {
                let length = varint(&mut message) as usize;
                (before.len() - message.len(), length)
            }
        };
        message = &before[start + length..];
        fields.push((tag >> 3, &whole[..whole.len() - message.len()], &before[start..start + length]));
    }
    fields
}

/// A text of a message.
fn name_of(message: &[u8], number: u64) -> &str {
    let found = fields(message).into_iter().find(|(field, ..)| *field == number).expect("a name");
    std::str::from_utf8(found.2).expect("text")
}

/// A file whose graph's fields went through `edit`, which gives back what stands for each.
pub fn edited(file: &[u8], edit: impl Fn(u64, &[u8]) -> Option<Vec<u8>>) -> Vec<u8> {
    let graph = |graph: &[u8]| {
        let each =
            fields(graph).into_iter().map(|(number, whole, value)| edit(number, value).unwrap_or(whole.to_vec()));
        bytes(7, each.collect::<Vec<_>>().concat())
    };
    let each = fields(file).into_iter().map(|(n, whole, value)| if n == 7 { graph(value) } else { whole.to_vec() });
    each.collect::<Vec<_>>().concat()
}

pub fn node(op: &str, inputs: &[&str], output: &str, attribute: &[u8]) -> Vec<u8> {
    let inputs = inputs.iter().map(|input| bytes(1, input)).collect::<Vec<_>>().concat();
    let attribute = if attribute.is_empty() { Vec::new() } else { bytes(5, attribute) };
    bytes(1, [inputs, bytes(2, output), bytes(4, op), attribute].concat())
}

/// Small, with a square layer at the end.
fn square() -> (Vec<u8>, Tensors) {
    let file = small();
    let tensors = read_bytes(&file).tensors;
    (file, tensors)
}

#[test]
fn every_form_of_a_tensor_is_found() {
    let (file, expected) = square();
    // As files before IR version 4: each initialiser is an input of the graph too.
    let listed = edited(&file, |number, value| {
        (number == 5).then(|| [bytes(5, value), bytes(11, bytes(1, name_of(value, 8)))].concat())
    });
    assert_eq!(read_bytes(&listed).tensors, expected);
    // Weights that are constants, and such that go by another name.
    let constants = edited(&file, |number, value| {
        let nodes = |name| node("Constant", &[], name, &[bytes(1, "value"), bytes(5, value)].concat());
        (number == 5).then(|| nodes(name_of(value, 8)))
    });
    assert_eq!(read_bytes(&constants).tensors, expected);
    let aliased = edited(&file, |field, value| {
        let is_last = field == 1 && name_of(value, 2) == "logits";
        let gemm = [bytes(1, "x"), bytes(1, "w"), bytes(1, "b"), bytes(2, "logits"), bytes(4, "Gemm")];
        let turned = bytes(5, [bytes(1, "transB"), number(3, 1)].concat());
        is_last.then(|| {
            let input = fields(value).into_iter().next().expect("an input").2;
            let input = std::str::from_utf8(input).expect("text");
            let names = [(input, "x"), ("head.7.weight", "w"), ("head.7.bias", "b")];
            let names = names.map(|(from, to)| node("Identity", &[from], to, &[])).concat();
            [names, bytes(1, [gemm.concat(), turned].concat())].concat()
        })
    });
    assert_eq!(read_bytes(&aliased).tensors, expected);
}

#[test]
fn every_form_of_a_linear_layer_is_read() {
    let (file, expected) = square();
    let last = |make: &dyn Fn(&str) -> Vec<u8>| {
        let file = edited(&file, |number, value| {
            let is_last = number == 1 && name_of(value, 2) == "logits";
            is_last.then(|| make(std::str::from_utf8(fields(value)[0].2).expect("text")))
        });
        read_bytes(&file).tensors
    };
    let (weight, bias) = ("head.7.weight", "head.7.bias");
    let values = expected[weight].to_f32();
    let transposed: Tensors = expected
        .clone()
        .into_iter()
        .chain([(
            weight.to_owned(),
            FileTensor::from_f32(vec![2, 2], vec![values[0], values[2], values[1], values[3]]).expect("fits"),
        )])
        .collect();
    let without: Tensors = expected
        .clone()
        .into_iter()
        .chain([(bias.to_owned(), FileTensor::from_f32(vec![2], vec![0.0; 2]).expect("fits"))])
        .collect();
    let both: Tensors = transposed.clone().into_iter().chain([(bias.to_owned(), without[bias].clone())]).collect();
    let turned = [bytes(1, "transB"), number(3, 1)].concat();
    let is = |attribute: &[u8], inputs: &[&str], op: &str, expected: &Tensors| {
        let found = last(&|x| node(op, &[&[x], inputs].concat(), "logits", attribute));
        assert!(found == *expected, "{op} {inputs:?}");
    };
    is(&turned, &[weight, bias], "Gemm", &expected);
    is(&turned, &[weight], "Gemm", &without);
    is(&[], &[weight, bias], "Gemm", &transposed);
    is(&[], &[weight], "MatMul", &both);
    let added = |inputs: [&'static str; 2]| {
        last(&|x| [node("MatMul", &[x, weight], "product", &[]), node("Add", &inputs, "logits", &[])].concat())
    };
    assert!(added(["product", bias]) == transposed && added([bias, "product"]) == transposed);
    let before = |permutation: &[u8], inner: &[u8]| {
        let turn = node("Transpose", &[weight], "turned", permutation);
        last(&|x| [turn.clone(), node("Gemm", &[x, "turned", bias], "logits", inner)].concat())
    };
    assert!(before(&[], &[]) == expected);
    assert!(before(&[bytes(1, "perm"), number(8, 1), number(8, 0)].concat(), &turned) == transposed);
    // What is no plain layer leaves a network without a head.
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("other.onnx");
    let notes = |file: &[u8]| {
        std::fs::write(&path, file).expect("writes");
        CheckpointFile::open(&path).unwrap_or_else(|error| panic!("{error}")).notes
    };
    let other = edited(&file, |number, value| {
        (number == 1 && name_of(value, 2) == "logits")
            .then(|| node("Gemm", &["features", weight, weight], "logits", &[]))
    });
    assert!(notes(&file).is_empty());
    assert!(notes(&other).iter().all(|note| note.starts_with("what follows the last block is left out: ")));
    assert_eq!(notes(&other).len(), 1);
    let scaled = [&bytes(1, "alpha")[..], &[2 << 3 | 5], &0.5f32.to_le_bytes()].concat();
    for other in [
        last(&|x| node("Gemm", &[x, weight, bias], "logits", &scaled)),
        last(&|x| node("Gemm", &[weight, x, bias], "logits", &[])),
        last(&|x| node("Gemm", &[x, weight, weight], "logits", &[])),
        before(&[bytes(1, "perm"), number(8, 0), number(8, 1)].concat(), &[]),
    ] {
        assert!(other.keys().all(|name| !name.starts_with("head.")) && other.contains_key("layer3.0.bn2.bias"));
    }
}
