use super::*;
use std::fs;

fn read(path: &Path, holdout: Option<Holdout>) -> Result<Scan> {
    super::read(path, Task::SingleLabel, holdout)
}

fn written(text: &str) -> (tempfile::TempDir, PathBuf) {
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
    let (folder, path) = written(text);
    let scan = read(&path, None).unwrap();
    assert_eq!(scan.classes, ["cat", "dog"]);
    let item = |name: &str, label| Item { path: folder.path().join(name), label };
    assert_eq!(scan.train, [item("b b.png", 0), item("a.png", 1)]);
    assert_eq!(scan.valid, [item("e.png", 0)]);
    assert_eq!(scan.test, [item("c.png", 0)]);
    assert!(!scan.test_labelled);
    assert!(scan.skipped.len() == 1 && scan.skipped[0].path.ends_with("x.png"));
    let images = |split| images(&path, Task::SingleLabel, split).unwrap();
    let found = images(Split::Train);
    assert_eq!(found.images, ["a.png", "b b.png"].map(|name| folder.path().join(name)), "in the table's order");
    assert!(found.skipped.len() == 1 && images(Split::Test).images.len() == 1);
    assert!(
        read(&path, Some(Holdout { fraction: 0.5, seed: 0 })).unwrap_err().to_string().contains("leave the fraction")
    );
}

#[test]
fn without_a_split_a_part_is_held_out() {
    let (_folder, path) = written("\u{feff}path,label\na.png,x\nb b.png,x\nc.png,y\nd.png,y\n");
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
        ("path,label,split\na.png,x,train\nc.png,y,train\nd.png,z,valid\n", "line 4: class `z` is not among"),
        ("path,label,split\na.png,,train\n", "line 2: needs"),
        ("path,label,split\na.png,big cat,train\n", "several labels"),
        ("path,label,split\nx.png,x,train\na.png,y,train\nc.png,y,valid\n", "class `x` has no training image"),
        ("path,label,split\na.png,x,train\nc.png,y,train\n", "no validation images"),
        ("path,label\na.png\n", "no table"),
    ] {
        let (_folder, path) = written(text);
        let message = read(&path, None).or_else(|_| read(&path, Some(Holdout { fraction: 0.5, seed: 0 })));
        let first = read(&path, None).unwrap_err().to_string();
        let message = message.err().map_or(first.clone(), |error| error.to_string());
        assert!(first.contains(cause) || message.contains(cause), "{text}: {first} / {message}");
    }
}

#[test]
fn several_labels_become_rows_of_zeros_and_ones() {
    let text = "path,label,split\na.png,sea boat,train\nb b.png,,train\nc.png,boat  sky,valid\nd.png,sky,train\n";
    let (folder, path) = written(text);
    let scan = super::read(&path, Task::MultiLabel, None).unwrap();
    assert_eq!(scan.classes, ["boat", "sea", "sky"]);
    let targets = scan.targets.as_ref().unwrap();
    let of = |name: &str| {
        let items = scan.train.iter().chain(&scan.valid);
        let item = items.clone().find(|item| item.path == folder.path().join(name)).unwrap();
        targets.row(item.label).unwrap()
    };
    let expected = [("a.png", [1., 1., 0.]), ("b b.png", [0.; 3]), ("c.png", [1., 0., 1.]), ("d.png", [0., 0., 1.])];
    assert!(expected.iter().all(|(name, row)| of(name) == row));
    for (text, cause) in [
        ("path,label,split\na.png,x,train\nc.png,x y,valid\n", "line 3: class `y` is not among"),
        ("path,label,split\na.png,,train\nc.png,,valid\n", "no labels"),
        ("path,label,split\na.png,y,train\nx.png,x,train\nc.png,y,valid\n", "class `x` has no training image"),
    ] {
        let (_folder, path) = written(text);
        let error = super::read(&path, Task::MultiLabel, None).unwrap_err().to_string();
        assert!(error.contains(cause), "{error}");
    }
}

#[test]
fn numbers_are_read_from_every_other_column() {
    let text = "path,x,y\na.png,1.5,-2\nb b.png,3,4e1\nc.png,0,0\nd.png,7,8\n";
    let (folder, path) = written(text);
    let scan = super::read(&path, Task::Regression, Some(Holdout { fraction: 0.25, seed: 1 })).unwrap();
    assert_eq!(
        (scan.classes.as_slice(), scan.train.len(), scan.valid.len()),
        (&["x", "y"].map(String::from)[..], 3, 1)
    );
    let targets = scan.targets.as_ref().unwrap();
    let expected = [("a.png", [1.5, -2.]), ("b b.png", [3., 40.]), ("c.png", [0., 0.]), ("d.png", [7., 8.])];
    for item in scan.train.iter().chain(&scan.valid) {
        let (_, row) = expected.iter().find(|(name, _)| item.path == folder.path().join(name)).unwrap();
        assert_eq!(targets.row(item.label).unwrap(), row);
    }
    let names = ["x", "y"].map(String::from);
    assert_eq!(labelled(&path, Task::Regression, &names, Split::Test).unwrap().items.len(), 4);
    assert!(labelled(&path, Task::Regression, &names[..1], Split::Test).is_err());
    for (text, cause) in [
        ("path,x,split\na.png,big,train\nc.png,1,valid\n", "line 2: `big` in column `x`"),
        ("path,x,split\na.png,inf,train\nc.png,1,valid\n", "no number"),
        ("path,x,split\na.png,,train\nc.png,1,valid\n", "line 2: needs"),
        ("path,split\na.png,train\n", "a column for each number"),
        ("path,x,split\nx.png,1,train\nc.png,1,valid\n", "no training image"),
    ] {
        let (_folder, path) = written(text);
        let error = super::read(&path, Task::Regression, None).unwrap_err().to_string();
        assert!(error.contains(cause), "{error}");
    }
}
