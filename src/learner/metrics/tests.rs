use super::*;
use crate::random::Random;

fn evaluation(labels: &[u32], probabilities: &[f32]) -> Evaluation {
    Evaluation { labels: labels.to_vec(), probabilities: probabilities.to_vec(), ..Evaluation::default() }
}

#[track_caller]
fn close(found: Option<f64>, expected: f64) {
    assert!(found.is_some_and(|found| (found - expected).abs() < 1e-6), "{found:?}, not {expected}");
}

/// Probabilities of two decimals, so that many are equal.
fn random(samples: usize, classes: usize, seed: u64) -> Evaluation {
    let mut random = Random::stream(seed, "metrics", &[]);
    let labels: Vec<u32> = (0..samples).map(|_| random.uniform(0.0, classes as f32 - 0.01) as u32).collect();
    let row = |label: u32| -> Vec<f32> {
        let mut row: Vec<f32> = (0..classes).map(|_| random.uniform(0.0, 1.0)).collect();
        row[label as usize] += 0.4;
        let sum: f32 = row.iter().sum();
        row.iter().map(|p| (p / sum * 100.0).round() / 100.0).collect()
    };
    let probabilities = labels.iter().copied().flat_map(row).collect::<Vec<_>>();
    evaluation(&labels, &probabilities)
}

/// The examples in the documentation of precision_score, recall_score, f1_score and fbeta_score.
#[test]
fn counts_equal_those_of_scikit_learn() {
    let (labels, predicted) = ([0, 1, 2, 0, 1, 2], [0, 2, 1, 0, 0, 1]);
    let confusion = Confusion::new(3, labels.into_iter().zip(predicted));
    let zero = confusion.class(0);
    close(zero.precision(), 2.0 / 3.0);
    close(zero.recall(), 1.0);
    close(zero.f_beta(1.0), 0.8);
    close(zero.f_beta(0.5), 0.714_285_7);
    close(confusion.class(1).precision(), 0.0);
    for (average, precision, recall, f1, f_half) in [
        (Average::Macro, 0.222_222_2, 0.333_333_3, 0.266_666_7, 0.238_095_2),
        (Average::Micro, 0.333_333_3, 0.333_333_3, 0.333_333_3, 0.333_333_3),
    ] {
        close(confusion.average(average, Counts::precision), precision);
        close(confusion.average(average, Counts::recall), recall);
        close(confusion.average(average, |counts| counts.f_beta(1.0)), f1);
        close(confusion.average(average, |counts| counts.f_beta(0.5)), f_half);
    }
    assert_eq!(confusion.most_confused(1), [(2, 1, 2), (1, 0, 1), (1, 2, 1)]);
    assert_eq!(confusion.most_confused(2), [(2, 1, 2)]);
    assert_eq!((confusion.samples(), confusion.correct(), confusion.count(2, 1)), (6, 2, 2));
}

/// Of 1 + 4 samples of class 0, one is found; class 1 is only predicted, class 2 is neither.
#[test]
fn classes_without_samples_or_predictions_are_told_apart() {
    let confusion = Confusion::new(3, [(0, 0), (0, 1), (0, 1), (0, 1), (0, 1), (7, 0)]);
    let [zero, one, two] = [0, 1, 2].map(|class| confusion.class(class));
    assert_eq!((zero.precision(), zero.recall(), zero.f_beta(1.0)), (Some(1.0), Some(0.2), Some(2.0 / 6.0)));
    assert_eq!((one.precision(), one.recall(), one.f_beta(1.0)), (Some(0.0), None, Some(0.0)));
    assert_eq!((two.precision(), two.recall(), two.f_beta(1.0)), (None, None, None));
    // scikit-learn has the mean over those that occur or are predicted, with 0 where there is nothing to divide.
    close(confusion.average(Average::Macro, Counts::precision), 0.5);
    close(confusion.average(Average::Macro, Counts::recall), 0.1);
    assert_eq!(Confusion::new(2, []).average(Average::Macro, Counts::recall), None);
    assert_eq!(Confusion::new(2, []).average(Average::Micro, Counts::recall), None);
}

/// The examples in the documentation of roc_auc_score, top_k_accuracy_score and log_loss.
#[test]
fn ranks_and_losses_equal_those_of_scikit_learn() {
    let scores = [0.1f32, 0.4, 0.35, 0.8];
    let binary = evaluation(&[0, 0, 1, 1], &scores.map(|p| [1.0 - p, p]).concat());
    close(binary.auc(1), 0.75);
    close(binary.auc(0), 0.75);
    close(binary.metric(Metric::Auc), 0.75);
    let rows = [0.5, 0.2, 0.2, 0.3, 0.4, 0.2, 0.2, 0.4, 0.3, 0.7, 0.2, 0.1];
    close(evaluation(&[0, 1, 2, 2], &rows).metric(Metric::TopK(2)), 0.75);
    let rows = [0.1, 0.9, 0.9, 0.1, 0.8, 0.2, 0.35, 0.65];
    close(evaluation(&[1, 0, 0, 1], &rows).metric(Metric::LogLoss), 0.216_161_87);
}

#[test]
fn everything_equals_its_definition() {
    for (samples, classes, seed) in [(60, 3, 1), (200, 7, 2), (9, 2, 3)] {
        let found = random(samples, classes, seed);
        let rows: Vec<(&[f32], u32)> = found.rows().collect();
        assert_eq!((rows.len(), found.classes()), (samples, classes));
        for class in 0..classes {
            let (mut won, mut pairs, mut tied) = (0.0, 0.0, 0);
            for (own, _) in rows.iter().filter(|row| row.1 as usize == class) {
                for (other, _) in rows.iter().filter(|row| row.1 as usize != class) {
                    won += if own[class] > other[class] { 1.0 } else { 0.0 };
                    won += if own[class] == other[class] { 0.5 } else { 0.0 };
                    tied += usize::from(own[class] == other[class]);
                    pairs += 1.0;
                }
            }
            close(found.auc(class), won / pairs);
            assert!(tied > 0 || samples < 50, "ties are met");
        }
        for k in 1..classes {
            let among = |(row, label): &&(&[f32], u32)| {
                let mut order: Vec<usize> = (0..classes).collect();
                // Stable: of equals the first stays first.
                order.sort_by(|a, b| row[*b].total_cmp(&row[*a]));
                order[..k].contains(&(*label as usize))
            };
            let expected = rows.iter().filter(among).count() as f64 / samples as f64;
            close(found.metric(Metric::TopK(k)), expected);
        }
        let confusion = found.confusion();
        close(found.metric(Metric::Accuracy), confusion.correct() as f64 / samples as f64);
        let f = |class: usize| {
            let pairs = || rows.iter().map(|(row, label)| (best(row) == class, *label as usize == class));
            let count = |a, b| pairs().filter(|pair| *pair == (a, b)).count() as f64;
            let precision = count(true, true) / (count(true, true) + count(true, false));
            let recall = count(true, true) / (count(true, true) + count(false, true));
            if precision + recall > 0.0 { 5.0 * precision * recall / (4.0 * precision + recall) } else { 0.0 }
        };
        let mean = (0..classes).map(f).sum::<f64>() / classes as f64;
        close(found.metric(Metric::FBeta(2.0, Average::Macro)), mean);
    }
}

#[test]
fn what_is_not_defined_is_none_and_what_is_no_number_is_wrong() {
    let one = evaluation(&[0, 0], &[0.5, 0.5, 0.2, 0.8]);
    assert_eq!((one.auc(0), one.auc(1), one.metric(Metric::Auc)), (None, None, None));
    assert_eq!((one.top_k(1), one.top_k(2)), (0.5, 1.0));
    let nan = evaluation(&[0, 1], &[f32::NAN, f32::NAN, 0.2, 0.8]);
    assert_eq!((nan.top_k(1), nan.auc(0)), (0.5, None));
    let sure = evaluation(&[0], &[0.0, 1.0]);
    assert!(sure.log_loss() > 80.0 && sure.log_loss().is_finite());
    let nothing = Evaluation::default();
    assert_eq!((nothing.top_k(1), nothing.classes(), nothing.metric(Metric::Auc)), (0.0, 0, None));
}

#[test]
fn names_are_read_as_they_are_written_and_odd_ones_are_errors() {
    for name in ["accuracy", "top5", "precision", "recall-micro", "f1", "f0.5-micro", "auc", "log_loss"] {
        let metric: Metric = name.parse().expect(name);
        assert_eq!(metric.to_string(), name);
        assert!(metric.check(Task::SingleLabel, 6).is_ok());
        assert_eq!(serde_json::from_str::<Metric>(&serde_json::to_string(&metric).unwrap()).unwrap(), metric);
    }
    for name in ["", "f", "top", "top-1", "auc-micro", "accuracy-micro", "top5-micro", "Recall", "fast"] {
        let error = name.parse::<Metric>().unwrap_err().to_string();
        assert!(error.contains(&format!("'{name}' is unknown")) && error.contains("log_loss"), "{error}");
    }
    for name in ["top2", "top0", "f0", "f-1", "finf", "fnan"] {
        let error = name.parse::<Metric>().expect(name).check(Task::SingleLabel, 2).unwrap_err();
        assert!(matches!(error, Error::Setting { .. }), "{name}");
    }
}
