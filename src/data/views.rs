//! A fixed number of views of each image, of which a pass shows one.

use std::path::{Path, PathBuf};

use super::View;
use crate::random::{Random, fnv1a64, splitmix64};

/// So many views of each image: the clean one, and others that are augmented as in training. How they look, and which
/// one a pass shows, depends on these numbers and the file's path within the data set alone: not on other files, their
/// order, or the number of threads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Views {
    /// Decides how augmented views look.
    pub seed: u64,
    /// Views of each image, the clean one among them; at least 1.
    pub count: usize,
    /// Which set of views this is: another one's augmented views are others.
    pub generation: u64,
    /// The number of the pass. Each file goes through its views in turn, but starts at a view of its own: were all to
    /// show the clean one in the same pass, passes would be of different kinds, and the last would decide too much.
    pub pass: u64,
    /// The folder of the data set.
    pub root: PathBuf,
}

impl Views {
    /// The number of the view of a file that the pass shows; 0 is the clean one.
    pub fn number(&self, path: &Path) -> u64 {
        splitmix64(self.hash(path)).wrapping_add(self.pass) % self.count.max(1) as u64
    }

    pub(super) fn view(&self, path: &Path) -> View {
        match self.number(path) {
            0 => View::Clean,
            number => View::Random(Random::stream(self.seed, "view", &[self.generation, self.hash(path), number])),
        }
    }

    fn hash(&self, path: &Path) -> u64 {
        fnv1a64(&path.strip_prefix(&self.root).unwrap_or(path).to_string_lossy())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_file_goes_through_all_its_views_and_each_pass_mixes_them() {
        let views = |pass| Views { seed: 1, count: 4, generation: 0, pass, root: "data".into() };
        let files: Vec<PathBuf> = (0..400).map(|n| format!("data/cat/{n}.png").into()).collect();
        for file in &files {
            let mut shown: Vec<u64> = (5..9).map(|pass| views(pass).number(file)).collect();
            shown.sort_unstable();
            assert_eq!(shown, [0, 1, 2, 3]);
        }
        for pass in 0..4 {
            let clean = files.iter().filter(|file| views(pass).number(file) == 0).count();
            assert!((60..140).contains(&clean), "{clean} of 400");
        }
        // Wherever the data set lies.
        let moved = Views { root: "elsewhere".into(), ..views(3) };
        assert_eq!(moved.number(Path::new("elsewhere/cat/7.png")), views(3).number(&files[7]));
    }

    #[test]
    fn each_number_decides_how_a_view_looks() {
        let first = Views { seed: 1, count: 4, generation: 0, pass: 0, root: "data".into() };
        let draw = |views: &Views, path: &str| match views.view(Path::new(path)) {
            View::Clean => None,
            View::Random(mut random) => Some(random.uniform(0.0, 1.0)),
        };
        let path = "data/a.png";
        let pass = (0..4).find(|pass| Views { pass: *pass, ..first.clone() }.number(Path::new(path)) == 1).unwrap();
        let first = Views { pass, ..first };
        let looks = draw(&first, path);
        assert!(looks.is_some() && looks == draw(&Views { pass: pass + 4, ..first.clone() }, path));
        for other in [
            Views { seed: 2, ..first.clone() },
            Views { generation: 1, ..first.clone() },
            Views { pass: pass + 1, ..first.clone() },
        ] {
            assert_ne!(looks, draw(&other, path), "{other:?}");
        }
        assert_eq!(draw(&Views { pass: pass + 3, ..first.clone() }, path), None, "the clean one");
        assert_ne!(looks, draw(&first, "data/b.png"));
    }
}
