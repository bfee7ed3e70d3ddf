//! What kernels do to memory and tensor cores, counted by the emulator; the same bits under every order of blocks and
//! warps, and from the code of every architecture; the choices of the table.

use std::sync::Arc;

use super::{
    super::{
        GradFinish, Master, cuda,
        table::{Generation, Gpu, Problem, Product, Tile},
    },
    Factors, Operands, PRECISIONS, TILES, activation, bits,
};
use crate::{
    Device, Result,
    device::CudaDevice,
    ops::{
        conv::{
            Epilogue,
            tests::{Case, case},
        },
        testing::{
            KnownNorm,
            emulator::{Emulator, Settings, emulated},
        },
    },
    tensor::Precision,
};

/// An emulated GPU that nothing else runs on.
fn alone(settings: Settings) -> Option<(Device, Arc<CudaDevice>, Arc<Emulator>)> {
    match emulated(settings)? {
        (Device::Cuda(cuda), emulator) => Some((Device::Cuda(cuda.clone()), cuda, emulator)),
        (Device::Cpu(_), _) => None,
    }
}

/// Every kernel on something ragged, under every tile; the bits of all results.
fn everything(device: &Device, cuda: &Arc<CudaDevice>) -> Result<Vec<Vec<u64>>> {
    let mut results = Vec::new();
    for (case, precision) in [
        case([2, 9, 7, 72, 72, 3, 3, 1, 1, 1]),
        case([1, 9, 10, 40, 136, 3, 3, 2, 1, 1]),
        case([1, 8, 8, 64, 64, 3, 3, 1, 1, 8]),
        case([1, 15, 13, 4, 64, 7, 7, 2, 3, 1]),
    ]
    .into_iter()
    .flat_map(|case| PRECISIONS.map(|precision| (case, precision)))
    {
        let operands = Operands::new(&case, precision, device)?;
        let Operands { input, grad, packed, extents, .. } = &operands;
        let flipped = packed.flipped.as_ref().expect("packed with it");
        let norm = KnownNorm::new(1, extents.k, device);
        for tile in operands.tiles() {
            let epilogue = Epilogue { norm: Some(norm.fixed()), ..Epilogue::default() };
            results.push(bits(&cuda::forward(cuda, tile, input, &packed.forward, extents, epilogue)?));
            let (output, moments) = cuda::forward_with_moments(cuda, tile, input, &packed.forward, extents)?;
            results.extend([&output, &moments.mean, &moments.m2].map(bits));
        }
        let dims = case.input_dims();
        let patches = Problem::new(Product::InputGrad, operands.factors(), extents).patches;
        for tile in TILES.into_iter().chain(patches.then_some(Tile::Patches)).filter(|_| dims[3] % 8 == 0) {
            let sink = super::grads::sink(dims, true, precision, device)?;
            let finish = GradFinish { sink: Some(&sink), ..GradFinish::default() };
            let (output, sums) = cuda::input_grad(cuda, tile, grad, flipped, extents, finish)?;
            let sums = sums.expect("asked for");
            results.extend([&output, &sums.sum, &sums.product].map(bits));
        }
        let tiles = if dims[3] == 4 { vec![] } else { vec![Tile::Large, Tile::Small] };
        let by4 = (precision == Precision::Bf16).then_some(Tile::SmallBy4);
        for tile in tiles.into_iter().chain(by4) {
            let master = Master { c: case.group_c, k: case.group_k };
            let pixels = extents.n * extents.p * extents.q;
            let slices = (pixels.div_ceil(32), 32);
            results.push(bits(&cuda::weight_grad(cuda, tile, slices, grad, input, extents, master)?));
        }
    }
    Ok(results)
}

#[test]
fn banks_do_not_clash_and_schedules_and_architectures_do_not_matter() -> Result<()> {
    let settings = |schedule, capability| Settings { schedule, capability, ..Settings::default() };
    let Some((device, cuda, emulator)) = alone(settings(0, (8, 0))) else { return Ok(()) };
    let expected = everything(&device, &cuda)?;
    for (kernel, counters) in emulator.counters() {
        assert_eq!(counters.bank_conflicts(), 0, "{kernel}: {counters:?}");
    }
    for (schedule, capability) in [(1, (8, 6)), (2, (9, 0)), (3, (12, 0))] {
        let (device, cuda, _) = alone(settings(schedule, capability)).expect("a compiler, as before");
        for (at, (actual, expected)) in everything(&device, &cuda)?.iter().zip(&expected).enumerate() {
            assert!(actual == expected, "result {at}, schedule {schedule}, {capability:?}");
        }
    }
    Ok(())
}

/// What one kernel was counted to do: matrix products, sectors of 32 bytes loaded and stored.
fn counted(work: impl FnOnce(&Device, &Arc<CudaDevice>) -> Result<()>, kernel: &str) -> Result<Option<[u64; 3]>> {
    let Some((device, cuda, emulator)) = alone(Settings::default()) else { return Ok(None) };
    work(&device, &cuda)?;
    let counters = emulator.counters()[kernel];
    Ok(Some([counters.mma, counters.global_load_sectors, counters.global_store_sectors]))
}

/// Asserts the number of products, and that memory is moved as often as stated and at most a fiftieth more often.
fn assert_counted(what: &str, actual: Option<[u64; 3]>, [products, loads, stores]: [usize; 3]) {
    let Some([mma, loaded, stored]) = actual else { return };
    assert_eq!(mma, products as u64, "matrix products of {what}");
    for (kind, actual, stated) in [("loads", loaded, loads as u64), ("stores", stored, stores as u64)] {
        assert!((stated..=stated + stated / 50).contains(&actual), "{what} {kind} {actual} sectors, not {stated}");
    }
}

/// Two blocks' worth of rows by two of columns, so that each operand is read as often as there are tiles across it.
#[test]
fn products_and_sectors_are_what_tiles_imply() -> Result<()> {
    let (n, h, w, c, k) = (2, 16, 8, 64, 256);
    let (rows, precision) = (n * h * w, Precision::Bf16);
    let sectors = |elements: usize| elements * 2 / 32;

    let pointwise = case([n, h, w, c, k, 1, 1, 1, 0, 1]);
    for (tile, [tile_rows, tile_cols]) in TILES.map(|tile| (tile, tile.extents())) {
        let kernel = format!("conv_mma_forward_bf16_{}", tile.name());
        let work = |device: &Device, cuda: &Arc<CudaDevice>| {
            let operands = Operands::new(&pointwise, precision, device)?;
            let residual = activation(1, "residual", pointwise.output_dims(), precision, device);
            let norm = KnownNorm::new(1, k, device);
            let epilogue = Epilogue { norm: Some(norm.fixed()), residual: Some(&residual), relu: true };
            cuda::forward(cuda, tile, &operands.input, &operands.packed.forward, &operands.extents, epilogue)?;
            Ok(())
        };
        // Four numbers of a channel's batchnorm, once for each tile that it is in.
        let norm = rows / tile_rows * k * 4 * 4 / 32;
        let loads = sectors(rows * c * (k / tile_cols) + k * c * (rows / tile_rows) + rows * k) + norm;
        let expected = [rows / 16 * (k / 8) * (c / 16), loads, sectors(rows * k)];
        assert_counted(&kernel, counted(work, &kernel)?, expected);
    }

    // Nine taps, of which those outside the image are not read; batchnorm's moments beside the output.
    let window = case([n, h, w, c, c, 3, 3, 1, 1, 1]);
    let inside = n * c * (3 * h - 2) * (3 * w - 2);
    let products = rows / 16 * (c / 8) * (9 * c / 16);
    let moments = |tile: Tile| rows / tile.sum_rows() * c * 2 * 4 / 32;
    let forward = |tile: Tile| {
        move |device: &Device, cuda: &Arc<CudaDevice>| {
            let operands = Operands::new(&window, precision, device)?;
            cuda::forward_with_moments(cuda, tile, &operands.input, &operands.packed.forward, &operands.extents)?;
            Ok(())
        }
    };
    let weights = |blocks: usize| blocks * c * 9 * c;
    let loads = sectors(inside + weights(rows / 128));
    let expected = [products, loads, sectors(rows * c) + moments(Tile::Tall)];
    let kernel = "conv_mma_forward_bf16_128x64";
    assert_counted(kernel, counted(forward(Tile::Tall), kernel)?, expected);
    // The same from patches of 10 by 10 pixels for 8 by 8: here each has two sides outside the image's width, one
    // outside its height.
    let patches = n * (h / 8) * 9 * 8 * c;
    let expected = [products, sectors(patches + weights(rows / 128)), sectors(rows * c) + moments(Tile::Patches)];
    let kernel = "conv_mma_patch_forward_bf16";
    assert_counted(kernel, counted(forward(Tile::Patches), kernel)?, expected);
    Ok(())
}

#[test]
fn gradients_move_what_tiles_imply() -> Result<()> {
    let precision = Precision::Bf16;
    let sectors = |elements: usize| elements * 2 / 32;
    // Stride 2: four classes of 64 pixels, with 1, 2, 2 and 4 of the nine taps; as many products as the forward pass
    // has.
    let (n, h, w, c, k) = (4, 8, 8, 64, 64);
    let strided = case([n, h, w, c, k, 3, 3, 2, 1, 1]);
    let work = |device: &Device, cuda: &Arc<CudaDevice>| {
        let operands = Operands::new(&strided, precision, device)?;
        let sink = super::grads::sink(strided.input_dims(), true, precision, device)?;
        let finish = GradFinish { sink: Some(&sink), ..GradFinish::default() };
        let flipped = operands.packed.flipped.as_ref().expect("packed with it");
        cuda::input_grad(cuda, Tile::Small, &operands.grad, flipped, &operands.extents, finish)?;
        Ok(())
    };
    let (rows, taps) = (n * h * w, 9);
    // Of dy along an axis: four pixels for odd coordinates' first tap and for even ones', three for the second.
    let inside = n * k * (4 + 4 + 3) * (4 + 4 + 3);
    // Of a mask's sectors each class wants every other byte row; each warp reads its channels' means, in two halves.
    let (mask, means) = (2 * rows * c / 8 / 32, 4 * 4 * 2 * c * 4 / 32);
    let loads = sectors(inside + taps * k * c + rows * c) + mask + means;
    let expected = [rows / 4 / 16 * (c / 8) * (taps * k / 16), loads, sectors(rows * c) + 4 * c * 2 * 4 / 32];
    let kernel = "conv_mma_input_grad_bf16_64x64";
    assert_counted(kernel, counted(work, kernel)?, expected);

    // Two slices of the pixels; dy once per column tile, the taps of x that exist once per row tile.
    let (n, h, w, c, k) = (4, 8, 8, 128, 128);
    let window = case([n, h, w, c, k, 3, 3, 1, 1, 1]);
    let work = |device: &Device, cuda: &Arc<CudaDevice>| {
        let Operands { input, grad, extents, .. } = &Operands::new(&window, precision, device)?;
        cuda::weight_grad(cuda, Tile::Large, (2, 128), grad, input, extents, Master { c, k })?;
        Ok(())
    };
    let pixels = n * h * w;
    let loads = sectors(pixels * k * 9 + n * c * (3 * h - 2) * (3 * w - 2));
    let expected = [pixels / 16 * (k / 16) * (9 * c / 8), loads, 2 * k * 9 * c * 4 / 32];
    let kernel = "conv_mma_weight_grad_bf16_128x128";
    assert_counted(kernel, counted(work, kernel)?, expected);
    Ok(())
}

/// The layers of networks, for batches of 64 and of 1.
#[test]
fn the_table_suits_the_layers_of_networks() -> Result<()> {
    let gpu = |generation, multiprocessors| Gpu { generation, multiprocessors };
    let (hopper, ada) = (gpu(Generation::Hopper, 132), gpu(Generation::Ada, 128));
    let tile = |product, factors, layer: Case, gpu| {
        let extents = super::extents(layer.input_dims().into(), joined_weight(&layer).into(), layer.geometry)?;
        Result::Ok(Problem::new(product, factors, &extents).tile(gpu))
    };
    use Factors::{Bf16, Tf32};
    use Product::{Forward, InputGrad, WeightGrad};
    for (product, factors, layer, on_hopper, on_ada) in [
        (Forward, Bf16, [64, 224, 224, 4, 64, 7, 7, 2, 3, 1], Tile::TallBy4, Tile::TallBy4),
        (WeightGrad, Bf16, [64, 224, 224, 4, 64, 7, 7, 2, 3, 1], Tile::SmallBy4, Tile::SmallBy4),
        (Forward, Tf32, [64, 224, 224, 4, 64, 7, 7, 2, 3, 1], Tile::Tall, Tile::Tall),
        (Forward, Bf16, [64, 56, 56, 64, 64, 3, 3, 1, 1, 1], Tile::Patches, Tile::Patches),
        (InputGrad, Bf16, [64, 56, 56, 64, 64, 3, 3, 1, 1, 1], Tile::Patches, Tile::Patches),
        (Forward, Tf32, [64, 56, 56, 64, 64, 3, 3, 1, 1, 1], Tile::Tall, Tile::Tall),
        (Forward, Bf16, [64, 56, 56, 128, 128, 3, 3, 1, 1, 32], Tile::Patches, Tile::Patches),
        (Forward, Bf16, [64, 56, 56, 64, 256, 1, 1, 1, 0, 1], Tile::Large, Tile::Tall),
        (InputGrad, Bf16, [64, 56, 56, 128, 128, 3, 3, 2, 1, 1], Tile::Large, Tile::Tall),
        (Forward, Bf16, [64, 7, 7, 512, 512, 3, 3, 1, 1, 1], Tile::Tall, Tile::Tall),
        (Forward, Bf16, [1, 7, 7, 512, 512, 3, 3, 1, 1, 1], Tile::Small, Tile::Small),
        (WeightGrad, Bf16, [64, 7, 7, 512, 512, 3, 3, 1, 1, 1], Tile::Large, Tile::Large),
        (WeightGrad, Bf16, [64, 56, 56, 64, 64, 3, 3, 1, 1, 1], Tile::Small, Tile::Small),
    ] {
        let layer = case(layer);
        assert_eq!(tile(product, factors, layer, hopper)?, on_hopper, "{product:?} {factors:?} {layer:?}");
        assert_eq!(tile(product, factors, layer, ada)?, on_ada, "{product:?} {factors:?} {layer:?}");
    }
    for pixels in [1, 49, 3136, 64 * 3136, 256 * 3136] {
        for (rows, cols) in [(64, 576), (512, 4608), (64, 196), (2048, 512)] {
            let problem = Problem { product: WeightGrad, rows, cols, groups: 1, by4: false, patches: false };
            for tile in [Tile::Large, Tile::Small] {
                let (slices, length) = problem.slices(tile, pixels);
                let what = format!("{slices} slices of {length} of {pixels} pixels: {rows} by {cols}");
                assert!(length.is_multiple_of(32) && length * slices >= pixels, "{what}");
                assert!(length * (slices - 1) < pixels, "no slice is empty: {what}");
                assert!(slices == 1 || problem.tiles(tile) * slices < 1024, "parts that fit: {what}");
                assert!(problem.tiles(tile) * slices >= 256 || length <= 512, "enough blocks: {what}");
            }
        }
    }
    Ok(())
}

/// The shape of a layer's packed weight.
fn joined_weight(layer: &Case) -> [usize; 4] {
    let [k, r, s, group_c] = layer.weight_dims();
    [k, r, s, super::joined(layer.geometry.groups, group_c, layer.group_k) * group_c]
}
