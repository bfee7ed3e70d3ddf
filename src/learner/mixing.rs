//! MixUp and CutMix: batches whose samples take in others, and what they should be then.

use std::ops::Range;

use rand::seq::SliceRandom;
use rand_distr::{Beta, Distribution};

use super::{Input, Labels, Learner, StepOptions};
use crate::{
    Error, Result,
    ops::mix::{Mix, mix},
    random::Random,
};

/// Probability of CutMix where both are asked for, as timm's `switch_prob`.
const SWITCH: f32 = 0.5;

/// What is mixed in a batch, as fastai 2 draws it: a shuffle of the batch gives each sample its partner. For MixUp each
/// sample has a share of its own, the larger of λ and 1 − λ of λ ~ Beta(α, α); for CutMix one box of about 1 − λ of the
/// area is the batch's, around a pixel that any may be, cut off at the edges.
#[derive(Clone, Debug, PartialEq)]
pub struct Mixing {
    /// The sample that each takes in.
    pub partners: Vec<u32>,
    /// How.
    pub mix: Mix,
    /// Share of its own that each sample keeps.
    pub shares: Vec<f32>,
}

impl Mixing {
    /// That of batch `number` under `seed`, of so many samples: images of `[rows, columns]` pixels, or features
    /// without. `None` where `options` ask for none, or for CutMix of features.
    pub fn draw(
        options: &StepOptions,
        seed: u64,
        number: u64,
        samples: usize,
        extents: Option<[usize; 2]>,
    ) -> Option<Self> {
        let mut random = Random::stream(seed, "mix", &[number]);
        let (mixup, cutmix) = (options.mixup, options.cutmix.zip(extents));
        let cut = mixup.is_none() || random.chance(SWITCH);
        let mut partners: Vec<u32> = (0..samples as u32).collect();
        partners.shuffle(&mut random);
        if let Some((alpha, extents)) = cutmix.filter(|_| cut) {
            let sides = cut_out(beta(alpha)?.sample(&mut random), extents, &mut random);
            let area = sides.iter().map(|side| side.len()).product::<usize>() as f32;
            let share = 1.0 - area / extents.iter().product::<usize>() as f32;
            return Some(Self { partners, mix: Mix::Box(sides), shares: vec![share; samples] });
        }
        let beta = beta(mixup?)?;
        let share = |_| {
            let share = beta.sample(&mut random);
            share.max(1.0 - share) as f32
        };
        let shares: Vec<f32> = (0..samples).map(share).collect();
        Some(Self { partners, mix: Mix::Shares(shares.clone()), shares })
    }

    /// Of `rows`, the shares of so many classes in each sample, those in the mixed samples.
    fn targets(&self, rows: &[f32], classes: usize) -> Vec<f32> {
        let mut targets = Vec::with_capacity(rows.len());
        let row = |number: usize| rows[number * classes..].iter().take(classes);
        for (number, (partner, share)) in self.partners.iter().zip(&self.shares).enumerate() {
            let pairs = row(number).zip(row(*partner as usize));
            targets.extend(pairs.map(|(own, other)| share * own + (1.0 - share) * other));
        }
        targets
    }
}

/// Beta(α, α); `None` for an α that is none.
fn beta(alpha: f32) -> Option<Beta<f64>> {
    Beta::new(f64::from(alpha), f64::from(alpha)).ok()
}

/// Rows and columns of a box of a share 1 − `kept` of the area, where no edge cuts it.
fn cut_out(kept: f64, extents: [usize; 2], random: &mut Random) -> [Range<usize>; 2] {
    let ratio = (1.0 - kept).max(0.0).sqrt();
    // fastai draws the column first.
    let [width, height] = [extents[1], extents[0]].map(|extent| {
        let centre = (random.uniform(0.0, extent as f32) as usize).min(extent.saturating_sub(1));
        let half = (extent as f64 * ratio).round() as usize / 2;
        centre.saturating_sub(half)..(centre + half).min(extent)
    });
    [height, width]
}

impl StepOptions {
    /// # Errors
    /// [`Error::Setting`] for an α of no Beta distribution.
    pub(super) fn validate_mixing(&self) -> Result<()> {
        for (setting, alpha) in [("mixup", self.mixup), ("cutmix", self.cutmix)] {
            if let Some(alpha) = alpha.filter(|alpha| !(alpha.is_finite() && *alpha > 0.0)) {
                return Err(Error::setting(setting, format!("{alpha} is no alpha; give a finite value above 0")));
            }
        }
        Ok(())
    }
}

impl Learner {
    /// A batch mixed as `options` say; `number` decides how.
    pub(super) fn mixed(
        &mut self,
        input: Input,
        labels: Labels,
        options: &StepOptions,
        number: u64,
    ) -> Result<(Input, Labels)> {
        let extents = match (&input, input.tensor().dims()) {
            (Input::Images(_), &[_, h, w, _]) => Some([h, w]),
            _ => None,
        };
        if extents.is_none() && options.cutmix.is_some() {
            let message = "cutmix has no effect on cached activations, which have no pixels";
            self.note(message.into())?;
        }
        let classes = self.model.head.classes();
        let samples = labels.samples(classes);
        let Some(mixing) = Mixing::draw(options, self.seed, number, samples, extents) else {
            return Ok((input, labels));
        };
        let mixed = mix(input.tensor(), &mixing.partners, &mixing.mix)?;
        let targets = Labels::Shares(mixing.targets(&labels.shares(classes), classes));
        let input = match input {
            Input::Images(_) => Input::Images(mixed),
            Input::Activation { units, .. } => Input::Activation { units, output: mixed },
            Input::Features(_) => Input::Features(mixed),
        };
        Ok((input, targets))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(mixup: Option<f32>, cutmix: Option<f32>) -> Vec<Mixing> {
        let options = StepOptions { mixup, cutmix, ..StepOptions::default() };
        (0..400).filter_map(|number| Mixing::draw(&options, 3, number, 8, Some([10, 20]))).collect()
    }

    #[test]
    fn shares_are_of_the_beta_distribution() {
        for alpha in [0.2, 0.4, 1.0, 8.0] {
            let found = drawn(Some(alpha), None);
            let shares: Vec<f32> = found.iter().flat_map(|mixing| mixing.shares.clone()).collect();
            assert!(shares.len() == 3200 && shares.iter().all(|share| (0.5..=1.0).contains(share)));
            // Its variance, which taking the larger side does not change.
            let variance = shares.iter().map(|share| (share - 0.5).powi(2)).sum::<f32>() / shares.len() as f32;
            let expected = 1.0 / (4.0 * (2.0 * alpha + 1.0));
            assert!((variance / expected - 1.0).abs() < 0.06, "alpha {alpha}: {variance}, not {expected}");
            for mixing in &found {
                let mut partners = mixing.partners.clone();
                partners.sort_unstable();
                assert_eq!((partners, &mixing.mix), ((0..8).collect(), &Mix::Shares(mixing.shares.clone())));
            }
            assert!(found[0] != found[1] && drawn(Some(alpha), None) == found);
        }
    }

    #[test]
    fn boxes_lie_within_and_have_their_share_of_the_area() {
        let mut areas = 0.0;
        for mixing in drawn(None, Some(1.0)) {
            let Mix::Box([rows, columns]) = &mixing.mix else { panic!("{mixing:?}") };
            assert!(rows.end <= 10 && columns.end <= 20 && rows.start <= rows.end && columns.start <= columns.end);
            let area = (rows.len() * columns.len()) as f32 / 200.0;
            assert!(mixing.shares.iter().all(|share| (share - (1.0 - area)).abs() < 1e-6));
            areas += area / 400.0;
        }
        // Half of the area on average (1 − λ), less what the edges cut off: with sides r, (r − r² / 4)² on average over
        // r² uniform, that is 1/2 − 1/5 + 1/48, and less for sides rounded down to even ones.
        assert!((0.25..0.33).contains(&areas), "{areas}");
        let both = drawn(Some(0.4), Some(1.0));
        let cut = both.iter().filter(|mixing| matches!(mixing.mix, Mix::Box(_))).count();
        assert!(both.len() == 400 && (160..240).contains(&cut), "{cut} of 400");
        let options = StepOptions { cutmix: Some(1.0), ..StepOptions::default() };
        assert_eq!(Mixing::draw(&options, 3, 0, 8, None), None, "features have no pixels");
        assert!(drawn(None, None).is_empty());
    }

    #[test]
    fn targets_are_the_shares_of_own_and_partner() {
        let (partners, shares) = (vec![2, 0, 1], vec![0.75, 0.5, 1.0]);
        let mixing = Mixing { partners, mix: Mix::Shares(shares.clone()), shares };
        assert_eq!(
            mixing.targets(&Labels::Classes(vec![0, 2, 0]).shares(3), 3),
            [1.0, 0.0, 0.0, 0.5, 0.0, 0.5, 1.0, 0.0, 0.0]
        );
    }
}
