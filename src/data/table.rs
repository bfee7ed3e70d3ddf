//! A data set as a table: a CSV file with the columns `path`, `label` and, if it is split already, `split`; for numbers
//! any columns take the place of `label`.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use super::decode::check_start;
use super::folders::{Found, Labelled, Scan};
use super::split::{Holdout, describe_leak, hold_out};
use super::{Item, Skipped, Split, Targets, Task};
use crate::{Error, Result};

#[cfg(test)]
mod tests;

const LAYOUT: &str = "expected a first line `path,label` or `path,label,split`, where split is train, valid or test";
const NUMBERS: &str = "expected a first line of path, a column for each number, and split (train, valid or test)";

/// A table as it was read.
struct Table {
    /// Names of the columns that say what images are.
    columns: Vec<String>,
    rows: Vec<Row>,
}

/// One line of the table.
struct Row {
    line: u64,
    path: PathBuf,
    /// What the image is, a cell for each of the columns.
    cells: Vec<String>,
    split: Option<Split>,
}

impl Row {
    fn split(&self) -> Split {
        self.split.unwrap_or(Split::Train)
    }

    /// The first cell: of labels there is one.
    fn label(&self) -> &str {
        self.cells.first().map_or("", String::as_str)
    }
}

/// Reads the table at `path`, whose paths are relative to its folder.
pub(super) fn read(path: &Path, task: Task, holdout: Option<Holdout>) -> Result<Scan> {
    let Table { columns, rows } = table(path, task)?;
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

    let classes = classes(task, columns, &rows);
    let mut scan = Scan { task, classes: classes.clone(), ..Scan::default() };
    match (task, scan.classes.len()) {
        (Task::SingleLabel, 0 | 1) => {
            let found = scan.classes.len();
            return Err(fail(format!("has {found} classes of training images; telling apart needs two or more")));
        }
        (Task::MultiLabel, 0) => return Err(fail("has no labels of training images".into())),
        _ => {}
    }
    let test = rows.iter().filter(|row| row.split() == Split::Test);
    scan.test_labelled = match task {
        Task::MultiLabel => test.clone().any(|row| !row.label().is_empty()),
        Task::SingleLabel | Task::Regression => {
            test.clone().count() > 0 && test.clone().all(|row| row.cells.iter().all(|cell| !cell.is_empty()))
        }
    };
    let mut answers = Answers { path, task, classes, values: Vec::new() };
    for row in rows {
        let known = row.split() != Split::Test || scan.test_labelled;
        let label = if known { answers.label(&row)? } else { answers.unknown() };
        match check_start(&row.path) {
            Err(reason) => scan.skipped.push(Skipped { path: row.path, reason }),
            Ok(()) => {
                let items = match row.split() {
                    Split::Train => &mut scan.train,
                    Split::Valid => &mut scan.valid,
                    Split::Test => &mut scan.test,
                };
                items.push(Item { path: row.path, label });
            }
        }
    }
    scan.targets = answers.targets()?;
    // By class and name, as folders are.
    let class = |item: &Item| if task == Task::SingleLabel { item.label } else { 0 };
    for items in [&mut scan.train, &mut scan.valid, &mut scan.test] {
        items.sort_by(|a, b| (class(a), &a.path).cmp(&(class(b), &b.path)));
    }
    if let Some(missing) = scan.missing() {
        let first = scan.skipped.first().map(|file| format!("; the first file left out: {file}"));
        return Err(fail(missing + &first.unwrap_or_default()));
    }
    match holdout {
        Some(holdout) => hold_out_of(&mut scan, holdout)?,
        None => scan.notes.extend(describe_leak(&scan.train, &scan.valid, "validation")?),
    }
    scan.notes.extend(describe_leak(&scan.train, &scan.test, "test")?);
    if scan.valid.is_empty() {
        return Err(fail("has no validation images that can be read".into()));
    }
    Ok(scan)
}

/// The images of `split` in the table at `path`, or all of them if it has no such column.
pub(super) fn labelled(path: &Path, task: Task, classes: &[String], split: Split) -> Result<Labelled> {
    let Table { columns, rows } = table(path, task)?;
    if task == Task::Regression && columns != classes {
        return Err(Error::data(path, format!("has the columns {columns:?}, not {classes:?}")));
    }
    let mut found = Labelled::default();
    let mut answers = Answers { path, task, classes: classes.to_vec(), values: Vec::new() };
    for row in rows.into_iter().filter(|row| row.split.is_none_or(|of| of == split)) {
        let label = answers.label(&row)?;
        match check_start(&row.path) {
            Ok(()) => found.items.push(Item { path: row.path, label }),
            Err(reason) => found.skipped.push(Skipped { path: row.path, reason }),
        }
    }
    found.targets = answers.targets()?;
    if found.items.is_empty() {
        return Err(Error::data(path, format!("has no {split} images that can be read")));
    }
    Ok(found)
}

/// The images of `split` in the table at `path`, in its order.
pub(super) fn images(path: &Path, task: Task, split: Split) -> Result<Found> {
    let mut found = Found::default();
    for row in table(path, task)?.rows.into_iter().filter(|row| row.split == Some(split)) {
        match check_start(&row.path) {
            Ok(()) => found.images.push(row.path),
            Err(reason) => found.skipped.push(Skipped { path: row.path, reason }),
        }
    }
    Ok(found)
}

/// Names of what images may be: classes or labels of the training images, sorted, or the columns.
fn classes(task: Task, columns: Vec<String>, rows: &[Row]) -> Vec<String> {
    let train = rows.iter().filter(|row| row.split() == Split::Train).map(Row::label);
    let names: BTreeSet<&str> = match task {
        Task::SingleLabel => train.collect(),
        Task::MultiLabel => train.flat_map(str::split_whitespace).collect(),
        Task::Regression => return columns,
    };
    names.into_iter().map(String::from).collect()
}

/// What rows say, as labels of items.
struct Answers<'a> {
    path: &'a Path,
    task: Task,
    classes: Vec<String>,
    /// Rows of targets.
    values: Vec<f32>,
}

impl Answers<'_> {
    /// The position of a row's class; for other tasks the number of its targets, which are kept.
    fn label(&mut self, row: &Row) -> Result<u32> {
        let fail = |message: String| Error::data(self.path, format!("line {}: {message}", row.line));
        let position = |class: &str| {
            let found = self.classes.iter().position(|known| known == class);
            found.ok_or_else(|| {
                fail(format!("class `{class}` is not among the classes of the training images, {:?}", self.classes))
            })
        };
        let mut targets = vec![0.0; self.classes.len()];
        match self.task {
            Task::SingleLabel => return position(row.label()).map(|class| class as u32),
            Task::MultiLabel => {
                for label in row.label().split_whitespace() {
                    targets[position(label)?] = 1.0;
                }
            }
            Task::Regression => {
                for ((target, cell), column) in targets.iter_mut().zip(&row.cells).zip(&self.classes) {
                    let number = cell.parse().ok().filter(|number: &f32| number.is_finite());
                    *target = number.ok_or_else(|| fail(format!("`{cell}` in column `{column}` is no number")))?;
                }
            }
        }
        Ok(self.keep(&targets))
    }

    /// The label of an image of which nothing is known.
    fn unknown(&mut self) -> u32 {
        match self.task {
            Task::SingleLabel => 0,
            Task::MultiLabel | Task::Regression => self.keep(&vec![0.0; self.classes.len()]),
        }
    }

    fn keep(&mut self, targets: &[f32]) -> u32 {
        let number = self.values.len() / targets.len().max(1);
        self.values.extend(targets);
        number as u32
    }

    fn targets(self) -> Result<Option<Targets>> {
        match self.task {
            Task::SingleLabel => Ok(None),
            Task::MultiLabel | Task::Regression => Targets::new(self.classes.len(), self.values).map(Some),
        }
    }
}

impl Scan {
    /// What the readable training images lack, if anything.
    fn missing(&self) -> Option<String> {
        let shows = |item: &Item, class: usize| match &self.targets {
            Some(targets) => targets.row(item.label).is_some_and(|row| row[class] != 0.0),
            None => item.label as usize == class,
        };
        let unseen = |class: &usize| !self.train.iter().any(|item| shows(item, *class));
        match self.task {
            Task::Regression => self.train.is_empty().then(|| "has no training image that can be read".into()),
            Task::SingleLabel | Task::MultiLabel => (0..self.classes.len())
                .find(unseen)
                .map(|class| format!("class `{}` has no training image that can be read", self.classes[class])),
        }
    }
}

/// Holds a part of the training images out for validation, of each class where an image has one.
fn hold_out_of(scan: &mut Scan, holdout: Holdout) -> Result<()> {
    let items = std::mem::take(&mut scan.train);
    let parts = match scan.task {
        Task::SingleLabel => hold_out(items, &scan.classes, holdout)?,
        Task::MultiLabel | Task::Regression => {
            let labels: HashMap<PathBuf, u32> = items.iter().map(|item| (item.path.clone(), item.label)).collect();
            let alike = items.into_iter().map(|item| Item { label: 0, ..item }).collect();
            let mut parts = hold_out(alike, &["all".into()], holdout)?;
            for item in parts.train.iter_mut().chain(&mut parts.valid) {
                item.label = labels.get(&item.path).copied().unwrap_or_default();
            }
            parts
        }
    };
    (scan.train, scan.valid) = (parts.train, parts.valid);
    scan.notes.extend(parts.notes);
    Ok(())
}

fn table(path: &Path, task: Task) -> Result<Table> {
    let layout = if task == Task::Regression { NUMBERS } else { LAYOUT };
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
        _ => fail(format!("is no table that can be read; {layout}")),
    };
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_path(path).map_err(broken)?;
    let headers: Vec<String> =
        reader.headers().map_err(broken)?.iter().map(|name| name.trim_start_matches('\u{feff}').into()).collect();
    let column = |name: &str| headers.iter().position(|header| header == name);
    let path_column = column("path");
    let columns: Vec<usize> = match task {
        Task::SingleLabel | Task::MultiLabel => column("label").into_iter().collect(),
        Task::Regression => {
            (0..headers.len()).filter(|at| !["path", "split"].contains(&headers[*at].as_str())).collect()
        }
    };
    let (Some(path_column), false) = (path_column, columns.is_empty()) else {
        return Err(fail(format!("its first line is `{}`; {layout}", headers.join(","))));
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
        let (file, cells): (_, Vec<String>) = (cell(path_column), columns.iter().map(|at| cell(*at).into()).collect());
        let needs_label = task != Task::MultiLabel && split != Some(Split::Test);
        if file.is_empty() || (needs_label && cells.iter().any(String::is_empty)) {
            let message = format!("line {line}: needs a path and a label; only test images may go without a label");
            return Err(fail(message));
        }
        if task == Task::SingleLabel && cells.iter().any(|label| label.contains(char::is_whitespace)) {
            let message =
                "spaces separate several labels of an image; choose the task multi-label, or write `_` for a space";
            return Err(fail(format!("line {line}: `{}`: {message}", cells.join(" "))));
        }
        let file = root.join(file);
        if let Some(first) = lines.insert(file.clone(), line) {
            return Err(fail(format!("line {line}: {} is in line {first} already", file.display())));
        }
        rows.push(Row { line, path: file, cells, split });
    }
    Ok(Table { columns: columns.into_iter().map(|at| headers[at].clone()).collect(), rows })
}
