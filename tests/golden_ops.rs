//! Every operation against what PyTorch computed, forward and backward.

mod common;

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
};

use safetensors::{Dtype, SafeTensors};
use unfreeze::{
    Device, Result, Tensor,
    autograd::{Tape, Var},
    ops::{
        batchnorm::{Affine, Fused, Moments, batchnorm},
        conv::{Geometry, conv},
        linear::linear,
        loss::{CrossEntropy, Target, cross_entropy, log_softmax},
        optimizer::{self, Item, Rate, Rates, Rule, Table},
        pool::{Window, concat_pool, max_pool},
    },
};

/// The bound on results, relative to their norm. PyTorch's own f32 rounding is in it too.
const TOLERANCE: f64 = 1e-5;
/// Groups whose operation this engine has not, or tests elsewhere.
const ELSEWHERE: [&str; 2] = ["bce_with_logits", "resize"];

/// PyTorch's tensors. Which of them were used is noted.
struct Golden {
    device: Device,
    tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
    used: RefCell<BTreeSet<String>>,
}

impl Golden {
    fn read(bytes: &[u8], device: Device) -> Self {
        let file = SafeTensors::deserialize(bytes).expect("a safetensors file");
        let mut tensors = BTreeMap::new();
        for (name, view) in file.tensors() {
            let values = match view.dtype() {
                Dtype::F32 => view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
                Dtype::I64 => {
                    view.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as f32).collect()
                }
                Dtype::U8 => view.data().iter().map(|byte| f32::from(*byte)).collect(),
                other => panic!("{name}: unexpected {other:?}"),
            };
            tensors.insert(name, (view.shape().to_vec(), values));
        }
        Self { device, tensors, used: RefCell::default() }
    }

    /// The tensor in this engine's layout: `[N, C, H, W]` becomes `[N, H, W, C]`, and weights alike.
    fn tensor(&self, name: &str) -> Tensor {
        let (shape, values) = self.tensors.get(name).unwrap_or_else(|| panic!("{name} is missing"));
        self.used.borrow_mut().insert(name.to_owned());
        let new = |values| match *shape.as_slice() {
            [] => Tensor::new(values, [], &self.device),
            [a] => Tensor::new(values, [a], &self.device),
            [a, b] => Tensor::new(values, [a, b], &self.device),
            [n, c, h, w] => Tensor::new(values, [n, h, w, c], &self.device),
            _ => panic!("{name}: {shape:?}"),
        };
        let values = match *shape.as_slice() {
            [n, c, h, w] => (0..n * c * h * w)
                .map(|at| {
                    let (image, y, x, channel) = (at / (h * w * c), at / (w * c) % h, at / c % w, at % c);
                    values[((image * c + channel) * h + y) * w + x]
                })
                .collect(),
            _ => values.clone(),
        };
        new(values).expect("the shape fits")
    }

    fn labels(&self, name: &str) -> Tensor {
        let labels = self.tensor(name);
        let values = labels.to_vec::<f32>().unwrap().into_iter().map(|label| label as u32).collect();
        Tensor::new(values, labels.shape(), &self.device).unwrap()
    }

    fn check(&self, name: &str, actual: &Tensor) {
        let expected = self.tensor(name);
        assert_eq!(actual.shape(), expected.shape(), "{name}");
        let (actual, expected) = (actual.to_vec::<f32>().unwrap(), expected.to_vec::<f32>().unwrap());
        let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
        let scale = norm(&mut expected.iter().map(|value| f64::from(*value)));
        let error =
            norm(&mut actual.iter().zip(&expected).map(|(actual, expected)| f64::from(*actual) - f64::from(*expected)));
        assert!(error <= TOLERANCE * scale, "{name}: relative error {:e}", error / scale);
    }

    /// Runs `op` on `group`'s `inputs`, and compares output and gradients.
    fn check_op(&self, group: &str, inputs: &[(&str, &str)], op: impl Fn(&mut Tape, &[Var]) -> Result<Var>) {
        let mut tape = Tape::new();
        let of = |part: &str| format!("{group}.{part}");
        let vars: Vec<Var> = inputs.iter().map(|(input, _)| tape.leaf(input, self.tensor(&of(input)))).collect();
        let output = op(&mut tape, &vars).unwrap();
        let grads = if self.tensors.contains_key(&of("loss")) {
            self.check(&of("loss"), output.value());
            tape.backward(&output).unwrap()
        } else {
            self.check(&of("y"), output.value());
            tape.backward_from(&output, self.tensor(&of("dy"))).unwrap()
        };
        assert_eq!(grads.len(), inputs.len(), "{group}");
        for (input, grad) in inputs {
            self.check(&of(grad), &grads[*input]);
        }
    }

    fn check_conv(&self, group: &str, stride: usize, padding: usize, groups: usize) {
        let geometry = Geometry { stride, padding, groups };
        self.check_op(group, &[("x", "dx"), ("w", "dw")], |tape, vars| conv(tape, &vars[0], &vars[1], geometry));
    }

    fn check_batchnorm(&self, group: &str, batch: bool) {
        let of = |part: &str| self.tensor(&format!("{group}.{part}"));
        let (mut mean, mut variance) = (of("mean_before"), of("var_before"));
        let moments = match batch {
            true => Moments::of(&of("x")).unwrap(),
            false => Moments { mean: mean.clone(), variance: variance.clone(), rows: 2 },
        };
        self.check_op(group, &[("x", "dx"), ("gamma", "dgamma"), ("beta", "dbeta")], |tape, vars| {
            let affine = Affine { scale: &vars[1], shift: &vars[2] };
            batchnorm(tape, &vars[0], affine, &moments, batch, 1e-5, Fused::default())
        });
        if batch {
            moments.update_running(0.1, &mut mean, &mut variance).unwrap();
        }
        self.check(&format!("{group}.mean_after"), &mean);
        self.check(&format!("{group}.var_after"), &variance);
    }

    fn check_loss(&self, group: &str, target: Target, options: &CrossEntropy) {
        self.check_op(group, &[("logits", "dlogits")], |tape, vars| cross_entropy(tape, &vars[0], &target, options));
    }

    /// Four steps; `rule` gets their number, from 1.
    fn check_optimizer(&self, group: &str, lr: f32, weight_decay: f32, rule: impl Fn(u32) -> Rule) {
        let mut parameter = self.tensor(&format!("{group}.p0"));
        let zeros = |_| Tensor::zeros(parameter.shape(), &self.device).unwrap();
        let mut buffers: Vec<Tensor> = (0..rule(1).buffers()).map(zeros).collect();
        for number in 1..=4 {
            let grad = &self.tensor(&format!("{group}.g{number}"));
            let item = Item { parameter: &mut parameter, grad, buffers: &mut buffers, packed: None, group: 0 };
            let rates = Rates::new(rule(number), &[Rate { lr, weight_decay }], &self.device).unwrap();
            optimizer::step(&rates, &mut [item], &mut Table::default()).unwrap();
            self.check(&format!("{group}.p{number}"), &parameter);
        }
    }

    fn check_sgd(&self, group: &str, weight_decay: f32, nesterov: bool) {
        self.check_optimizer(group, 0.1, weight_decay, |_| Rule::Sgd { momentum: 0.9, nesterov, decoupled: false });
    }

    fn check_adamw(&self, group: &str, beta2: f32, eps: f32, weight_decay: f32) {
        self.check_optimizer(group, 0.01, weight_decay, |step| Rule::AdamW { beta1: 0.9, beta2, eps, step });
    }

    /// Fails if a tensor of the file, [`ELSEWHERE`] aside, was not used.
    fn assert_complete(&self) {
        let used = self.used.borrow();
        let group = |name: &str| name.rsplit_once('.').expect("group.tensor").0.to_owned();
        let elsewhere = |name: &&String| ELSEWHERE.contains(&group(name).as_str());
        let forgotten: Vec<&String> =
            self.tensors.keys().filter(|name| !elsewhere(name) && !used.contains(*name)).collect();
        assert!(forgotten.is_empty(), "in the file but not checked: {forgotten:?}");
        let groups: BTreeSet<String> = used.iter().map(|name| group(name)).collect();
        assert_eq!(groups.len(), 22, "{groups:?}");
    }
}

#[test]
fn operations_agree_with_pytorch() {
    let Some(path) = common::shared("golden/ops.safetensors") else { return };
    let bytes = std::fs::read(path).unwrap();
    for device in [Device::cpu(2).unwrap()].into_iter().chain(common::emulator::gpu()) {
        check_all(&Golden::read(&bytes, device));
    }
}

fn check_all(golden: &Golden) {
    golden.check_conv("conv0_k7s2p3", 2, 3, 1);
    golden.check_conv("conv1_k3s1p1", 1, 1, 1);
    golden.check_conv("conv2_k3s2p1", 2, 1, 1);
    golden.check_conv("conv3_k1s1p0", 1, 0, 1);
    golden.check_conv("conv4_k1s2p0", 2, 0, 1);
    golden.check_conv("conv_groups4_k3s2p1", 2, 1, 4);

    for map in ["bn0", "bn1"] {
        golden.check_batchnorm(&format!("{map}_train"), true);
        golden.check_batchnorm(&format!("{map}_eval"), false);
    }

    golden.check_op("maxpool3s2p1", &[("x", "dx")], |tape, vars| max_pool(tape, &vars[0], Window::STEM));
    golden.check_op("concatpool_max_avg", &[("x", "dx")], |tape, vars| concat_pool(tape, &vars[0]));
    golden.check_op("log_softmax", &[("x", "dx")], |tape, vars| log_softmax(tape, &vars[0]));
    golden.check_op("linear", &[("x", "dx"), ("w", "dw"), ("b", "db")], |tape, vars| {
        linear(tape, &vars[0], &vars[1], &vars[2])
    });

    for label_smoothing in [0.0, 0.1] {
        let group = format!("cross_entropy_smooth{label_smoothing:.1}");
        let target = Target::Labels(golden.labels(&format!("{group}.labels")));
        golden.check_loss(&group, target, &CrossEntropy { label_smoothing, class_weights: None });
    }
    let target = Target::Soft(golden.tensor("cross_entropy_soft.targets"));
    golden.check_loss("cross_entropy_soft", target, &CrossEntropy::default());
    let target = Target::Labels(golden.labels("cross_entropy_weighted.labels"));
    let class_weights = Some(golden.tensor("cross_entropy_weighted.class_weights"));
    golden.check_loss("cross_entropy_weighted", target, &CrossEntropy { label_smoothing: 0.0, class_weights });

    golden.check_sgd("sgd_m0.9_wd0.01", 0.01, false);
    golden.check_sgd("sgd_nesterov", 0.0, true);
    golden.check_adamw("adamw", 0.99, 1e-5, 0.05);
    golden.check_adamw("adam", 0.999, 1e-8, 0.0);

    golden.assert_complete();
}
