//! What an entry of a catalogue must be.

use super::{Entry, sums::is_hexadecimal};

/// Longer than any checkpoint of an architecture here, in bytes: a server that sends more is not sending one.
pub(in crate::checkpoint) const LONGEST: u64 = 2 << 30;

/// What is wrong with `entry`, which comes after those of `earlier`.
pub(super) fn flaw(entry: &Entry, earlier: &[Entry]) -> Option<String> {
    let Entry { name, arch, url, sha256, mib, licence, top1, transforms } = entry;
    let file = entry.file_name();
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let is_name = |text: &str| !text.is_empty() && !text.starts_with('.') && text.bytes().all(plain);
    if earlier.iter().any(|other| other.name == *name) {
        return Some("an earlier entry has this name".into());
    }
    if !is_name(name) || !name.strip_prefix(arch.name()).is_some_and(|tag| tag.starts_with('.') && tag.len() > 1) {
        return Some(format!("the name must be {arch}, a dot, and letters, digits, '.', '_' or '-'"));
    }
    if !url.get(..8).is_some_and(|scheme| scheme.eq_ignore_ascii_case("https://")) {
        return Some(format!("the url must begin with https://, and is '{url}'"));
    }
    if !is_name(&file) {
        return Some(format!("the url must end in a file's name of letters, digits, '.', '_' or '-', not in '{file}'"));
    }
    if let Some(other) = earlier.iter().find(|other| other.file_name() == file) {
        return Some(format!("its file would be called as that of '{}', {file}", other.name));
    }
    match sha256 {
        None if entry.hub_file().is_none() => return Some("only the Hugging Face Hub tells a sha256 itself".into()),
        Some(hash) if !(8..=64).contains(&hash.len()) || !is_hexadecimal(hash) => {
            return Some(format!("sha256 must be 8 to 64 hexadecimal digits in small letters, and is '{hash}'"));
        }
        Some(hash) if digits(&file).is_some_and(|digits| !hash.starts_with(digits)) => {
            return Some(format!("sha256 must begin with the digits in {file}, and is '{hash}'"));
        }
        _ => {}
    }
    let in_mib = (LONGEST >> 20) as f64;
    if mib.is_some_and(|mib| !(mib > 0.0 && mib <= in_mib)) {
        return Some(format!("mib must be above 0 and at most {in_mib}"));
    }
    if licence.trim().is_empty() {
        return Some("it has no licence".into());
    }
    if !(0.0..=100.0).contains(top1) {
        return Some(format!("top1 must be a percentage, and is {top1}"));
    }
    if transforms.crop == 0 || transforms.crop > transforms.resize || transforms.resize > 1 << 14 {
        return Some("transforms must have a crop that is no larger than resize".into());
    }
    let positive = transforms.std.iter().all(|std| std.is_finite() && *std > 0.0);
    if !positive || !transforms.mean.iter().all(|mean| mean.is_finite()) {
        return Some("transforms must have a finite mean, and a std above 0".into());
    }
    None
}

/// The first digits of the hash that the publisher has put into the file's name, as PyTorch's hub reads them.
fn digits(file: &str) -> Option<&str> {
    let (_, end) = file.split_once('.').map_or(file, |(stem, _)| stem).rsplit_once('-')?;
    (end.len() >= 8 && is_hexadecimal(end)).then_some(end)
}
