//! A data set as a table: a CSV file with the columns `path`, `label` and, if it is split already, `split`.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use super::decode::check_start;
use super::folders::{Found, Labelled, Scan};
use super::split::{Holdout, describe_leak, hold_out};
use super::{Item, Skipped, Split};
use crate::{Error, Result};

const LAYOUT: &str = "expected a first line `path,label` or `path,label,split`, where split is train, valid or test";

/// One line of the table.
struct Row {
    line: u64,
    path: PathBuf,
    label: String,
    split: Option<Split>,
}

/// Reads the table at `path`, whose paths are relative to its folder.
pub(super) fn read(path: &Path, holdout: Option<Holdout>) -> Result<Scan> {
    let rows = rows(path)?;
    let fail = |message: String| Error::data(path, message);
    let is_split = rows.iter().any(|row| row.split.is_some());
    match holdout {
        None if !is_split => {
            let message =
                "has no column `split`; add one, or give a fraction to hold out for validation (0.2 is usual)";
            return Err(fail(message.into()));
        }
        Some(_) if rows.iter().any(|row| row.split == Some(Split::Valid)) => {
            let message = format!("{} says which images are for validation; leave the fraction out", path.display());
            return Err(Error::setting("valid_fraction", message));
        }
        _ => {}
    }

    let of = |row: &Row| row.split.unwrap_or(Split::Train);
    let classes: BTreeSet<&str> =
        rows.iter().filter(|row| of(row) == Split::Train).map(|row| row.label.as_str()).collect();
    let mut scan = Scan { classes: classes.into_iter().map(String::from).collect(), ..Scan::default() };
    if scan.classes.len() < 2 {
        let message = format!("has {} classes of training images; telling apart needs two or more", scan.classes.len());
        return Err(fail(message));
    }
    let test = rows.iter().filter(|row| of(row) == Split::Test);
    scan.test_labelled = test.clone().count() > 0 && test.clone().all(|row| !row.label.is_empty());
    for row in rows {
        let split = of(&row);
        let label = scan.classes.iter().position(|class| *class == row.label);
        let label = match label {
            Some(label) => label as u32,
            None if split == Split::Test && !scan.test_labelled => 0,
            None => return Err(fail(format!("line {}: no training image is of class `{}`", row.line, row.label))),
        };
        match check_start(&row.path) {
            Err(reason) => scan.skipped.push(Skipped { path: row.path, reason }),
            Ok(()) => {
                let items = match split {
                    Split::Train => &mut scan.train,
                    Split::Valid => &mut scan.valid,
                    Split::Test => &mut scan.test,
                };
                items.push(Item { path: row.path, label });
            }
        }
    }
    // By class and name, as folders are.
    for items in [&mut scan.train, &mut scan.valid, &mut scan.test] {
        items.sort_by(|a, b| (a.label, &a.path).cmp(&(b.label, &b.path)));
    }
    if let Some(class) =
        (0..scan.classes.len()).find(|&class| !scan.train.iter().any(|item| item.label == class as u32))
    {
        let message = format!("class `{}` has no training image that can be read", scan.classes[class]);
        let first = scan.skipped.first().map(|file| format!("; the first file left out: {file}"));
        return Err(fail(message + &first.unwrap_or_default()));
    }
    match holdout {
        Some(holdout) => {
            let parts = hold_out(std::mem::take(&mut scan.train), &scan.classes, holdout)?;
            (scan.train, scan.valid) = (parts.train, parts.valid);
            scan.notes.extend(parts.notes);
        }
        None => scan.notes.extend(describe_leak(&scan.train, &scan.valid, "validation")?),
    }
    scan.notes.extend(describe_leak(&scan.train, &scan.test, "test")?);
    if scan.valid.is_empty() {
        return Err(fail("has no validation images that can be read".into()));
    }
    Ok(scan)
}

/// The images of `split` in the table at `path`, or all of them if it has no such column.
pub(super) fn labelled(path: &Path, classes: &[String], split: Split) -> Result<Labelled> {
    let mut found = Labelled::default();
    for row in rows(path)?.into_iter().filter(|row| row.split.is_none_or(|of| of == split)) {
        let Some(label) = classes.iter().position(|class| *class == row.label) else {
            let message = format!("line {}: class `{}` is not among the classes {classes:?}", row.line, row.label);
            return Err(Error::data(path, message));
        };
        match check_start(&row.path) {
            Ok(()) => found.items.push(Item { path: row.path, label: label as u32 }),
            Err(reason) => found.skipped.push(Skipped { path: row.path, reason }),
        }
    }
    if found.items.is_empty() {
        return Err(Error::data(path, format!("has no {split} images that can be read")));
    }
    Ok(found)
}

/// The images of `split` in the table at `path`, in its order.
pub(super) fn images(path: &Path, split: Split) -> Result<Found> {
    let mut found = Found::default();
    for row in rows(path)?.into_iter().filter(|row| row.split == Some(split)) {
        match check_start(&row.path) {
            Ok(()) => found.images.push(row.path),
            Err(reason) => found.skipped.push(Skipped { path: row.path, reason }),
        }
    }
    Ok(found)
}

fn rows(path: &Path) -> Result<Vec<Row>> {
    let fail = |message: String| Error::data(path, message);
    let broken = |error: csv::Error| match error.into_kind() {
        csv::ErrorKind::Io(error) => Error::io(path, error),
        csv::ErrorKind::Utf8 { pos, .. } => {
            fail(format!("is no table that can be read: line {} is not UTF-8 text", pos.map_or(0, |pos| pos.line())))
        }
        csv::ErrorKind::UnequalLengths { pos, expected_len, len } => {
            let line = pos.map_or(0, |pos| pos.line());
            fail(format!("is no table that can be read: line {line} has {len} fields, the first one {expected_len}"))
        }
        _ => fail(format!("is no table that can be read; {LAYOUT}")),
    };
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_path(path).map_err(broken)?;
    let headers = reader.headers().map_err(broken)?.clone();
    let column = |name: &str| headers.iter().position(|header| header.trim_start_matches('\u{feff}') == name);
    let (Some(path_column), Some(label_column)) = (column("path"), column("label")) else {
        let found: Vec<&str> = headers.iter().collect();
        return Err(fail(format!("its first line is `{}`; {LAYOUT}", found.join(","))));
    };
    let split_column = column("split");
    let root = path.parent().unwrap_or(Path::new(""));

    let mut rows = Vec::new();
    let mut lines: HashMap<PathBuf, u64> = HashMap::new();
    for record in reader.records() {
        let record = record.map_err(broken)?;
        let line = record.position().map_or(0, csv::Position::line);
        let cell = |column: usize| record.get(column).unwrap_or_default();
        let split = match split_column.map(cell) {
            None => None,
            Some("train") => Some(Split::Train),
            Some("valid" | "val") => Some(Split::Valid),
            Some("test") => Some(Split::Test),
            Some(other) => return Err(fail(format!("line {line}: the split `{other}` is not train, valid or test"))),
        };
        let (file, label) = (cell(path_column), cell(label_column));
        if file.is_empty() || (label.is_empty() && split != Some(Split::Test)) {
            let message = format!("line {line}: needs a path and a label; only test images may go without a label");
            return Err(fail(message));
        }
        if label.contains(char::is_whitespace) {
            let message =
                "spaces separate several labels of an image, which cannot be trained yet; write `_` for a space";
            return Err(fail(format!("line {line}: `{label}`: {message}")));
        }
        let file = root.join(file);
        if let Some(first) = lines.insert(file.clone(), line) {
            return Err(fail(format!("line {line}: {} is in line {first} already", file.display())));
        }
        rows.push(Row { line, path: file, label: label.into(), split });
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn table(text: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        for (number, name) in ["a.png", "b b.png", "c.png", "d.png", "e.png"].iter().enumerate() {
            crate::data::tests::noise(4, 4, number as u64).save(folder.path().join(name)).unwrap();
        }
        fs::write(folder.path().join("x.png"), "no image").unwrap();
        let path = folder.path().join("labels.csv");
        fs::write(&path, text).unwrap();
        (folder, path)
    }

    #[test]
    fn splits_labels_and_order() {
        let text = "split,label,path\nvalid,cat,e.png\ntrain,dog,a.png\ntrain,cat,\"b b.png\"\ntrain,dog,x.png\n\
                    test,,c.png\n";
        let (folder, path) = table(text);
        let scan = read(&path, None).unwrap();
        assert_eq!(scan.classes, ["cat", "dog"]);
        let item = |name: &str, label| Item { path: folder.path().join(name), label };
        assert_eq!(scan.train, [item("b b.png", 0), item("a.png", 1)]);
        assert_eq!(scan.valid, [item("e.png", 0)]);
        assert_eq!(scan.test, [item("c.png", 0)]);
        assert!(!scan.test_labelled);
        assert!(scan.skipped.len() == 1 && scan.skipped[0].path.ends_with("x.png"));
        let found = images(&path, Split::Train).unwrap();
        assert_eq!(found.images, ["a.png", "b b.png"].map(|name| folder.path().join(name)), "in the table's order");
        assert!(found.skipped.len() == 1 && images(&path, Split::Test).unwrap().images.len() == 1);
        assert!(
            read(&path, Some(Holdout { fraction: 0.5, seed: 0 }))
                .unwrap_err()
                .to_string()
                .contains("leave the fraction")
        );
    }

    #[test]
    fn without_a_split_a_part_is_held_out() {
        let (_folder, path) = table("\u{feff}path,label\na.png,x\nb b.png,x\nc.png,y\nd.png,y\n");
        let scan = read(&path, Some(Holdout { fraction: 0.5, seed: 3 })).unwrap();
        let labels = |items: &[Item]| items.iter().map(|item| item.label).collect::<Vec<_>>();
        assert_eq!((labels(&scan.train), labels(&scan.valid)), (vec![0, 1], vec![0, 1]));
        assert!(read(&path, None).unwrap_err().to_string().contains("hold out"));
    }

    #[test]
    fn mistakes_name_the_line() {
        for (text, cause) in [
            ("", "first line"),
            ("file,class\na.png,x\n", "first line is `file,class`"),
            ("path,label\na.png,x\nb b.png,x\n", "two or more"),
            ("path,label,split\na.png,x,train\nc.png,y,dev\n", "line 3: the split `dev`"),
            ("path,label,split\na.png,x,train\nc.png,y,train\na.png,y,valid\n", "line 4"),
            ("path,label,split\na.png,x,train\nc.png,y,train\nd.png,z,valid\n", "line 4: no training image"),
            ("path,label,split\na.png,,train\n", "line 2: needs"),
            ("path,label,split\na.png,big cat,train\n", "several labels"),
            ("path,label,split\nx.png,x,train\na.png,y,train\nc.png,y,valid\n", "class `x` has no training image"),
            ("path,label,split\na.png,x,train\nc.png,y,train\n", "no validation images"),
            ("path,label\na.png\n", "no table"),
        ] {
            let (_folder, path) = table(text);
            let message = read(&path, None).or_else(|_| read(&path, Some(Holdout { fraction: 0.5, seed: 0 })));
            let first = read(&path, None).unwrap_err().to_string();
            let message = message.err().map_or(first.clone(), |error| error.to_string());
            assert!(first.contains(cause) || message.contains(cause), "{text}: {first} / {message}");
        }
    }
}
