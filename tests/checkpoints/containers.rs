//! Checkpoints of PyTorch's and NumPy's containers, made by hand.

use std::io::{Cursor, Write};

use unfreeze::checkpoint::{FileDtype, Format};

use crate::{Tensors, read};

/// A zip archive of stored entries without checksums; `method` and `unpacked` are what its directory claims.
pub fn zip(entries: &[(&str, &[u8])], method: u16, unpacked: impl Fn(usize) -> u32) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for (name, bytes) in entries {
        let start = file.len() as u32;
        // Version, flags, method, time, date, checksum, sizes, lengths of name and extra field.
        // The flag says that names are UTF-8.
        let mut common = vec![20, 0, 0, 8];
        common.extend(method.to_le_bytes());
        common.extend([0; 8]);
        common.extend((bytes.len() as u32).to_le_bytes());
        common.extend(unpacked(bytes.len()).to_le_bytes());
        common.extend((name.len() as u16).to_le_bytes());
        common.extend([0; 2]);
        file.extend([b"PK\x03\x04", &common[..], name.as_bytes(), bytes].concat());
        directory.extend([b"PK\x01\x02\x14\0", &common[..], &[0; 10], &start.to_le_bytes(), name.as_bytes()].concat());
    }
    let (start, count) = (file.len() as u32, entries.len() as u16);
    let length = directory.len() as u32;
    file.append(&mut directory);
    file.extend(b"PK\x05\x06\0\0\0\0");
    file.extend([&count.to_le_bytes()[..], &count.to_le_bytes(), &length.to_le_bytes()].concat());
    file.extend([&start.to_le_bytes()[..], &[0; 2]].concat());
    file
}

/// A real archive, as the `zip` crate compresses it.
pub fn deflated(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let options = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Deflated);
    let mut writer = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in entries {
        writer.start_file(*name, options).expect("starts");
        writer.write_all(bytes).expect("writes");
    }
    writer.finish().expect("ends").into_inner()
}

/// The instructions of a tensor, a view of a storage of six elements.
pub fn tensor(shape: [i32; 2], stride: [i32; 2]) -> Vec<u8> {
    let pair = |pair: [i32; 2]| pair.iter().flat_map(|n| [b"J", &n.to_le_bytes()[..]].concat()).collect::<Vec<_>>();
    let mut tensor = b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storage".to_vec();
    tensor.extend(b"ctorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x06tQK\0");
    tensor.extend([&pair(shape)[..], b"\x86", &pair(stride), b"\x86\x89}tR"].concat());
    tensor
}

/// The instructions of a string.
pub fn text(text: &str) -> Vec<u8> {
    [b"X", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat()
}

/// The pickle of `{"w": tensor}` and of whatever `more` pickles after it.
pub fn pickle(shape: [i32; 2], stride: [i32; 2], more: &[u8]) -> Vec<u8> {
    [b"\x80\x02}", &text("w")[..], &tensor(shape, stride), b"s", more, b"."].concat()
}

/// A checkpoint around `pickle`, in the layout of PyTorch 0.1.10 to 1.5.
pub fn legacy(pickle: &[u8]) -> Vec<u8> {
    let magic = b"\x80\x02\x8a\n\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03.";
    let system = b"\x80\x02}X\x0d\0\0\0little_endian\x88s.";
    let keys = b"\x80\x02]X\x01\0\0\x000a.";
    [&magic[..], system, pickle, keys, &6i64.to_le_bytes(), &storage()].concat()
}

/// A checkpoint around `pickle`, in the layout of today's `torch.save`.
pub fn stored(pickle: &[u8]) -> Vec<u8> {
    zip(&[("a/data.pkl", pickle), ("a/version", b"3\n"), ("a/data/0", &storage())], 0, |length| length as u32)
}

/// An `.npy` file with this text as its header.
pub fn npy(header: &str, data: &[u8]) -> Vec<u8> {
    [b"\x93NUMPY\x01\0", &(header.len() as u16).to_le_bytes()[..], header.as_bytes(), data].concat()
}

/// An archive of NumPy's, as `numpy.savez` writes it but for the checksums.
pub fn npz(tensors: &Tensors) -> Vec<u8> {
    let code = |dtype| match dtype {
        FileDtype::F64 => "<f8",
        FileDtype::F32 => "<f4",
        FileDtype::F16 => "<f2",
        FileDtype::I64 => "<i8",
        FileDtype::I32 => "<i4",
        FileDtype::I16 => "<i2",
        FileDtype::I8 => "|i1",
        FileDtype::U8 => "|u1",
        FileDtype::Bool => "|b1",
        other => panic!("NumPy has no {other}"),
    };
    let arrays: Vec<(String, Vec<u8>)> = tensors
        .iter()
        .map(|(name, tensor)| {
            let extents: String = tensor.shape.iter().map(|extent| format!("{extent}, ")).collect();
            let header =
                format!("{{'descr': '{}', 'fortran_order': False, 'shape': ({extents}), }}\n", code(tensor.dtype));
            (format!("{name}.npy"), npy(&header, tensor.bytes()))
        })
        .collect();
    let entries: Vec<(&str, &[u8])> = arrays.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
    with_checksums(zip(&entries, 0, |length| length as u32), &entries)
}

/// The archive with the checksums of its entries, which come in the same order in its directory.
fn with_checksums(mut file: Vec<u8>, entries: &[(&str, &[u8])]) -> Vec<u8> {
    for (signature, offset) in [(b"PK\x03\x04", 14), (b"PK\x01\x02", 16)] {
        let mut at = 0;
        for (name, bytes) in entries {
            let found = file[at..].windows(4).position(|window| window == signature).expect("an entry");
            let place = at + found + offset;
            file[place..place + 4].copy_from_slice(&crc32fast::hash(bytes).to_le_bytes());
            at += found + offset + name.len() + if offset == 14 { bytes.len() } else { 0 };
        }
    }
    file
}

/// The six elements that a tensor is a view of.
fn storage() -> Vec<u8> {
    (0..6u8).flat_map(|value| f32::from(value).to_le_bytes()).collect()
}

/// A checkpoint in the layout before PyTorch 0.1.10, of one tensor `w` of shape `[3, 2]`, transposed. Other bytes may
/// stand for one of its entries.
pub fn tar(other: Option<(&str, &[u8])>) -> Vec<u8> {
    let count = b"\x80\x02K\x01.";
    let system = b"\x80\x02}X\x0d\0\0\0little_endian\x88s.";
    let storages = [
        &count[..],
        b"\x80\x02K\x07X\x03\0\0\0cpuctorch\nFloatStorage\n\x87.",
        &6i64.to_le_bytes(),
        &storage(),
        b"\x80\x02].",
    ];
    // Rank and padding, then sizes, strides and offset.
    let view = [2i64, 3, 2, 1, 3, 0].map(i64::to_le_bytes).concat();
    let tensors = [&count[..], b"\x80\x02K\x01K\x07ctorch\nFloatTensor\n\x87.", &view];
    let root = b"\x80\x02}X\x01\0\0\0wX\x01\0\0\x001Qs.";

    let (storages, tensors) = (storages.concat(), tensors.concat());
    let files = [("sys_info", &system[..]), ("storages", &storages), ("tensors", &tensors), ("pickle", &root[..])];
    let replaced = |name| other.and_then(|(other, bytes)| (other == name).then_some(bytes));
    archive(files.map(|(name, bytes)| (name, replaced(name).unwrap_or(bytes))))
}

/// A tar archive of these files.
pub fn archive(files: [(&str, &[u8]); 4]) -> Vec<u8> {
    let mut file = Vec::new();
    for (name, bytes) in files {
        let mut header = [0; 512];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[100..107].copy_from_slice(b"0000644");
        header[124..135].copy_from_slice(format!("{:011o}", bytes.len()).as_bytes());
        header[148..156].fill(b' ');
        header[156] = b'0';
        header[257..265].copy_from_slice(b"ustar\x0000");
        let checksum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..155].copy_from_slice(format!("{checksum:06o}\0").as_bytes());
        file.extend(header);
        file.extend(bytes);
        file.resize(file.len().next_multiple_of(512), 0);
    }
    file.resize(file.len() + 1024, 0);
    file
}

#[test]
fn hand_made_containers_read() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("made.pth");
    let whole = pickle([3, 2], [1, 3], b"");
    for (file, format) in
        [(stored(&whole), Format::PytorchZip), (legacy(&whole), Format::PytorchLegacy), (tar(None), Format::PytorchTar)]
    {
        std::fs::write(&path, file).expect("writes");
        let checkpoint = read(&path);
        assert_eq!(checkpoint.format, format);
        assert_eq!(checkpoint.tensors["w"].shape, [3, 2]);
        assert_eq!(checkpoint.tensors["w"].to_f32(), [0., 3., 1., 4., 2., 5.]);
    }
}
