//! Images that tell something: the largest losses, and of each class the surest, the most wrong and the least sure.

use std::{
    collections::{BTreeSet, HashMap},
    path::{Path, PathBuf},
};

use rayon::prelude::*;

use super::{
    html::{Escaped, counted, percent},
    images::thumbnail,
};
use crate::{
    Error,
    learner::{Interpretation, PredictionRecord, RunFolder},
};

/// Images of the largest losses.
const TOP_LOSSES: usize = 24;
/// Images of each kind for a class, as fastai 0.7.
const PER_CLASS: usize = 4;
/// Classes that are shown; more would make the page too large to be opened with ease.
const MOST_CLASSES: usize = 16;
/// With more classes, each is opened on demand.
const MOST_OPEN: usize = 4;

/// The images of a class that are shown, by their positions: most correct, most incorrect, most uncertain.
struct Class {
    class: usize,
    rows: [(&'static str, Vec<usize>); 3],
}

/// Small copies of image files, or why there is none.
type Pictures = HashMap<PathBuf, Result<String, String>>;

struct Gallery<'a> {
    found: &'a Interpretation,
    run: &'a Path,
    data: &'a Path,
    pictures: Pictures,
}

/// The galleries of the run in `run`, whose images' names are relative to `data`.
pub(super) fn galleries(found: &Interpretation, run: &Path, data: &Path) -> String {
    let losses = found.top_losses(TOP_LOSSES);
    let classes = classes(found);
    let in_rows = classes.iter().flat_map(|class| class.rows.iter().flat_map(|(_, images)| images));
    let mut files: BTreeSet<PathBuf> = losses.iter().map(|at| RunFolder::grad_cam_of(run, *at)).collect();
    files.retain(|file| file.exists());
    files.extend(losses.iter().chain(in_rows).map(|at| data.join(&found.records()[*at].file)));
    let pictures = files.into_par_iter().map(|file| (file.clone(), thumbnail(&file).map_err(|e| cause(&e)))).collect();
    let gallery = Gallery { found, run, data, pictures };
    gallery.losses(&losses) + &gallery.classes(&classes)
}

/// The classes to be shown, in their order: if not all can be, those of which the least is recognised.
fn classes(found: &Interpretation) -> Vec<Class> {
    let recall = |class: usize| found.confusion().class(class).recall().unwrap_or(f64::INFINITY);
    let mut classes: Vec<usize> = (0..found.classes().len()).collect();
    classes.sort_by(|a, b| recall(*a).total_cmp(&recall(*b)));
    classes.truncate(MOST_CLASSES);
    classes.sort_unstable();
    let rows = |class: usize| {
        [
            ("most correct", found.most_correct(class, PER_CLASS)),
            ("most incorrect", found.most_incorrect(class, PER_CLASS)),
            ("most uncertain, of any class", found.most_uncertain(class, PER_CLASS)),
        ]
    };
    classes.into_iter().map(|class| Class { class, rows: rows(class) }).collect()
}

impl Gallery<'_> {
    fn losses(&self, losses: &[usize]) -> String {
        let (correct, samples) = (self.found.confusion().correct(), self.found.confusion().samples());
        let overlays = match losses.iter().any(|at| self.overlay(*at).is_some()) {
            true => {
                " The second picture of an image is what the network saw of it; it glows where the network finds the class \
                 that it takes the image for, and is dark elsewhere (Grad-CAM)."
            }
            false => "",
        };
        let mut html = format!(
            "<h3>Top losses</h3>\n<p>{} of {} are classified wrongly. Here are the {} to whose class the network gives the \
             least probability.{overlays}</p>\n<ul class=\"images\">\n",
            samples - correct,
            counted(samples, "image"),
            losses.len(),
        );
        losses.iter().for_each(|at| html += &self.figure(*at, None));
        html + "</ul>\n"
    }

    fn classes(&self, classes: &[Class]) -> String {
        let all = self.found.classes().len();
        let which = match all > classes.len() {
            true => format!(" The {} of {all} classes of which the least is recognised are shown.", classes.len()),
            false => String::new(),
        };
        let mut html = format!(
            "<h3>Most correct, incorrect and uncertain</h3>\n<p>Of each class: its images that are given its highest \
             probabilities, those taken for others that are given its lowest, and images of any class that are given \
             nearly the {} of a guess.{which}</p>\n",
            percent(1.0 / all.max(1) as f64)
        );
        let open = if all <= MOST_OPEN { " open" } else { "" };
        for Class { class, rows } in classes {
            let (name, counts) = (Escaped(&self.found.classes()[*class]), self.found.confusion().class(*class));
            html += &format!(
                "<details{open}>\n<summary><b>{name}</b>: {} of {} recognised</summary>\n",
                counts.hits,
                counted(counts.support, "image")
            );
            for (title, images) in rows.iter().filter(|(_, images)| !images.is_empty()) {
                html += &format!("<h4>{title}</h4>\n<ul class=\"images\">\n");
                images.iter().for_each(|at| html += &self.figure(*at, Some(*class)));
                html += "</ul>\n";
            }
            html += "</details>\n";
        }
        html
    }

    /// An image with what is said of it, in the gallery of a class or in that of all.
    fn figure(&self, at: usize, class: Option<usize>) -> String {
        let record = &self.found.records()[at];
        let PredictionRecord { file, label, .. } = record;
        let (label, predicted) = (*label as usize, record.predicted());
        let name = |class: usize| Escaped(&self.found.classes()[class]);
        let said = |class: usize| format!("<b>{}</b> {}", name(class), percent(f64::from(record.probability(class))));
        let outcome = match label == predicted {
            true => format!("is {}", said(label)),
            false => format!("is {}<br>taken for {}", said(label), said(predicted)),
        };
        let third = class.filter(|class| ![label, predicted].contains(class));
        let third = third.map(|class| format!("<br>{}", said(class))).unwrap_or_default();
        let about = match label == predicted {
            true => format!("{}: {}", Escaped(file), name(label)),
            false => format!("{}: {}, taken for {}", Escaped(file), name(label), name(predicted)),
        };
        let picture = self.picture(&self.data.join(file), &about, &Escaped(file));
        let overlay = match self.overlay(at).filter(|_| class.is_none()) {
            Some(overlay) => {
                let about = format!("where the network finds {} in {}", name(predicted), Escaped(file));
                self.picture(&overlay, &about, &about)
            }
            None => String::new(),
        };
        format!("<li>{picture}{overlay}<br>{outcome}{third}<br>loss {:.3}</li>\n", record.loss())
    }

    /// Where the run folder explains an image, if it does.
    fn overlay(&self, at: usize) -> Option<PathBuf> {
        Some(RunFolder::grad_cam_of(self.run, at)).filter(|path| self.pictures.contains_key(path))
    }

    /// A picture, or its name and why it is not to be had. Texts are escaped already.
    fn picture(&self, path: &Path, about: &str, title: &impl std::fmt::Display) -> String {
        match self.pictures.get(path) {
            Some(Ok(url)) => format!("<img src=\"{url}\" alt=\"{about}\" title=\"{title}\">"),
            Some(Err(cause)) => format!("<span class=\"missing\">{title}: {}</span>", Escaped(cause)),
            None => String::new(),
        }
    }
}

/// Why a picture is missing; its name stands beside.
fn cause(error: &Error) -> String {
    match error {
        Error::Io { source, .. } => source.to_string(),
        Error::Image { message, .. } => message.clone(),
        other => other.to_string(),
    }
}
