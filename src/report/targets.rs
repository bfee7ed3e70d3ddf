//! What the page says of runs whose images have no single class: label by label, or number by number, and where the
//! network was furthest off.

use super::{Records, html::table};
use crate::{
    data::Task,
    learner::{Evaluation, PredictionRecord},
};

/// Images listed that the network was furthest off.
const WORST: usize = 12;

/// Tables of labels or numbers, and of the worst images.
pub(super) fn outcome(records: &Records) -> String {
    let mut found = Evaluation {
        task: records.task,
        threshold: records.threshold,
        labels: (0..records.predictions.len() as u32).collect(),
        indices: (0..records.predictions.len() as u32).collect(),
        ..Evaluation::default()
    };
    for record in &records.predictions {
        found.probabilities.extend(&record.probabilities);
        found.targets.extend(&record.targets);
    }
    let number = |value: Option<f64>| value.map_or("–".into(), |value| format!("{value:.3}"));
    let counts = found.counts();
    let columns = records.classes.iter().enumerate();
    let of_each = match records.task {
        Task::Regression => {
            let row = |(column, name): (usize, &String)| vec![name.clone(), number(found.r2(column))];
            table(&["number", "R²"], 1, columns.map(row))
        }
        Task::SingleLabel | Task::MultiLabel => {
            let row = |(column, name): (usize, &String)| {
                let counts = counts[column];
                let numbers = [counts.precision(), counts.recall(), counts.f_beta(1.0), found.auc(column)];
                [vec![name.clone()], numbers.map(number).to_vec(), vec![counts.support.to_string()]].concat()
            };
            table(&["label", "precision", "recall", "F1", "area under ROC", "images"], 1, columns.map(row))
        }
    };
    let mut worst: Vec<&PredictionRecord> = records.predictions.iter().collect();
    worst.sort_by(|a, b| off(b).total_cmp(&off(a)));
    let rows = worst.into_iter().take(WORST).map(|record| {
        let list = |values: &[f32]| values.iter().map(|value| format!("{value:.3}")).collect::<Vec<_>>().join(", ");
        vec![record.file.clone(), list(&record.probabilities), list(&record.targets)]
    });
    let worst = table(&["image", "predicted", "should be"], 3, rows);
    format!("{of_each}<h3>Furthest off</h3>\n{worst}")
}

/// By how much a prediction is off, all outputs together.
fn off(record: &PredictionRecord) -> f32 {
    record.probabilities.iter().zip(&record.targets).map(|(output, target)| (output - target).abs()).sum()
}
