use std::sync::Arc;

use super::*;
use crate::{
    Device, Error, Tensor,
    device::cuda::{Driver, Table},
    ops::testing::{
        emulator::{Emulator, Settings, emulated, gpu},
        normal,
    },
};

fn cuda(device: &Device) -> &Arc<CudaDevice> {
    match device {
        Device::Cuda(cuda) => cuda,
        Device::Cpu(_) => panic!("a GPU"),
    }
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.to_vec().unwrap()
}

/// `2 · x + x`, with temporaries that end where the next one begins.
fn triple(x: &Tensor) -> Result<Tensor> {
    let mut twice = x.clone();
    twice.add_assign(x)?;
    let mut result = Tensor::zeros(x.shape(), x.device())?;
    result.add_assign(&twice)?;
    drop(twice);
    result.add_assign(x)?;
    Ok(result)
}

#[test]
fn work_is_done_at_replays_and_each_time_on_what_is_there_then() -> Result<()> {
    let Some(device) = gpu() else { return Ok(()) };
    let mut x = Tensor::new(vec![1f32, 2.0], [2], &device)?;
    let (graph, tripled) = cuda(&device).capture(|| triple(&x))?;
    for value in [1.0, 5.0, -2.0] {
        x.overwrite(&[value, 2.0])?;
        // What is allocated since does not get in its way.
        let others: Vec<Tensor> = (0..4).map(|other| Tensor::full([2], other as f32, &device).unwrap()).collect();
        assert!(graph.replay()?);
        assert_eq!(values(&tripled), [3.0 * value, 6.0]);
        for (other, tensor) in others.iter().enumerate() {
            assert_eq!(values(tensor), [other as f32; 2]);
        }
    }
    Ok(())
}

#[test]
fn a_replay_is_one_call_and_allocates_nothing() -> Result<()> {
    let Some((device, driver)) = emulated(Settings::default()) else { return Ok(()) };
    let x = normal(1, "x", [5000], &device);
    let (graph, _tripled) = cuda(&device).capture(|| triple(&x))?;
    assert_eq!(driver.graphs(), [3]);
    driver.take_carved();
    let (calls, launches, live) = (driver.calls(), driver.launches(), device.memory().live);
    (0..10).try_for_each(|_| graph.replay().map(drop))?;
    assert_eq!((driver.calls() - calls, driver.launches() - launches), (10, 30));
    assert_eq!((driver.take_carved(), device.memory().live), (Vec::new(), live));
    Ok(())
}

#[test]
fn what_a_graph_cannot_hold_is_an_error_and_leaves_everything_usable() -> Result<()> {
    let Some((device, driver)) = emulated(Settings::default()) else { return Ok(()) };
    let (x, live) = (normal(1, "x", [8], &device), device.memory().live);
    type Work<'a> = &'a dyn Fn() -> Result<()>;
    let cases: [(Work, &str); 5] = [
        (&|| Tensor::new(vec![0f32], [1], &device).map(drop), "an upload while a graph is captured"),
        (&|| x.scalar().map(drop), "a download while a graph is captured"),
        (&|| device.synchronize(), "waiting while a graph is captured"),
        (&|| cuda(&device).stage(&[1, 2]).map(drop), "input while a graph is captured"),
        (&|| cuda(&device).capture(|| Ok(())).map(drop), "a graph is captured already"),
    ];
    for (work, expected) in cases {
        let outcome = cuda(&device).capture(|| triple(&x).and_then(|_| work()));
        let error = outcome.err().expect("no part of a graph").to_string();
        assert!(error.contains(expected), "{error}");
        assert_eq!((driver.graphs(), device.memory().live), (Vec::new(), live));
    }
    // After work that panics, too.
    let panics = std::panic::AssertUnwindSafe(|| cuda(&device).capture(|| -> Result<()> { panic!("as asked") }));
    assert!(std::panic::catch_unwind(panics).is_err());
    let (graph, tripled) = cuda(&device).capture(|| triple(&x))?;
    graph.replay()?;
    assert_eq!(values(&tripled)[0], 3.0 * values(&x)[0]);
    Ok(())
}

/// Other threads' work is neither captured nor kept waiting.
#[test]
fn a_capture_is_one_threads_own() -> Result<()> {
    let Some(device) = gpu() else { return Ok(()) };
    let x = Tensor::full([3], 1.0, &device)?;
    let (graph, tripled) = cuda(&device).capture(|| {
        let (device, other) = (device.clone(), x.clone());
        let elsewhere = std::thread::spawn(move || {
            let copy = Tensor::new(vec![2f32; 3], [3], &device)?;
            assert_eq!(values(&triple(&copy)?), [6.0; 3]);
            triple(&other).map(|tripled| values(&tripled))
        });
        assert_eq!(elsewhere.join().expect("no panic")?, [3.0; 3]);
        triple(&x)
    })?;
    graph.replay()?;
    assert_eq!(values(&tripled), [3.0; 3]);
    Ok(())
}

#[test]
fn memory_goes_back_whatever_ends_first() -> Result<()> {
    let Some((device, driver)) = emulated(Settings::default()) else { return Ok(()) };
    let x = normal(1, "x", [1000], &device);
    let (live, free) = (device.memory().live, driver.memory()?.free);
    for graph_first in [true, false] {
        let (graph, tripled) = cuda(&device).capture(|| triple(&x))?;
        graph.replay()?;
        assert!(device.memory().live > live && driver.memory()?.free < free);
        if graph_first {
            drop(graph);
            assert_eq!(values(&tripled)[0], 3.0 * values(&x)[0], "outlives the graph");
            assert_eq!(device.memory().live, live + 4000);
        } else {
            drop(tripled);
            assert!(graph.replay()?);
        }
    }
    assert_eq!((device.memory().live, driver.memory()?.free), (live, free));
    Ok(())
}

#[test]
fn graphs_make_room_where_memory_runs_short() -> Result<()> {
    let settings = Settings { capacity: 128 << 20, ..Settings::default() };
    let Some((device, driver)) = emulated(settings) else { return Ok(()) };
    let x = Tensor::full([1 << 20], 1.0, &device)?;
    // As large as the memory that is left: two of twenty million bytes.
    let large = || -> Result<()> {
        let mut y = Tensor::zeros([5 << 20], &device)?;
        y.add_assign(&Tensor::zeros([5 << 20], &device)?)
    };
    let (graph, ()) = cuda(&device).capture(large)?;
    assert!(graph.replay()?);
    let room = device.available().unwrap();
    assert!(room > 80 << 20, "{room}: graphs count as room");
    let other = Tensor::zeros([20 << 20], &device)?;
    assert!(!graph.replay()? && driver.graphs().is_empty());
    // A capture that does not fit is an error that says so.
    assert!(matches!(cuda(&device).capture(large), Err(Error::OutOfMemory { .. })));
    drop(other);
    let (graph, tripled) = cuda(&device).capture(|| triple(&x))?;
    assert!(graph.replay()? && values(&tripled)[9] == 3.0);
    Ok(())
}

/// The graph's table is what it was captured with, whatever the table becomes.
#[test]
fn tables_are_each_graphs_own() -> Result<()> {
    let Some((device, driver)): Option<(Device, Arc<Emulator>)> = emulated(Settings::default()) else { return Ok(()) };
    let (cuda, mut table) = (cuda(&device), Table::default());
    let read = |address| -> Result<Vec<u8>> {
        let mut bytes = vec![0; 4];
        driver.download(address, &mut bytes).map(|()| bytes)
    };
    let first = table.address(cuda, vec![1, 2, 3, 4])?;
    let (graph, captured) = cuda.capture(|| table.address(cuda, vec![5, 6, 7, 8]))?;
    assert_ne!(first, captured);
    assert_eq!(table.address(cuda, vec![9, 9, 9, 9])?, first);
    graph.replay()?;
    assert_eq!((read(first)?, read(captured)?), (vec![9; 4], vec![5, 6, 7, 8]));
    Ok(())
}
