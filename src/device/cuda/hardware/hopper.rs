//! What only GPUs since Hopper do: copies by tensor maps, launches in clusters.

use std::{ffi::c_void, ptr::null_mut};

use cudarc::driver::sys;

use super::{
    super::{EncodedMap, Launch, Swizzle, TensorMap, TensorMode, TensorType},
    Answer,
};

/// Has the driver encode a map whose lists fit each other ([`TensorMap::check`]).
pub fn encode(map: &TensorMap) -> Answer<EncodedMap> {
    let element = match map.element {
        TensorType::Bf16 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        TensorType::F32 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
        TensorType::Tf32 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_TFLOAT32,
    };
    let swizzle = match map.swizzle {
        Swizzle::None => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_NONE,
        Swizzle::B32 => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_32B,
        Swizzle::B64 => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_64B,
        Swizzle::B128 => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
    };
    let in_order = sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE;
    let promotion = sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B;
    let zeros = sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE;
    let (rank, address) = (map.extents.len() as u32, map.address as *mut c_void);
    let (extents, strides, steps) = (map.extents.as_ptr(), map.strides.as_ptr(), map.steps.as_ptr());
    let mut encoded = sys::CUtensorMap { opaque: [0; 16] };
    // SAFETY: each list is as long as the rank says; the driver reads the lists and no other memory.
    let answer = unsafe {
        match &map.mode {
            TensorMode::Tiled { extents: tile } => sys::cuTensorMapEncodeTiled(
                &mut encoded,
                element,
                rank,
                address,
                extents,
                strides,
                tile.as_ptr(),
                steps,
                in_order,
                swizzle,
                promotion,
                zeros,
            ),
            TensorMode::Im2col { lower, upper, channels, pixels } => sys::cuTensorMapEncodeIm2col(
                &mut encoded,
                element,
                rank,
                address,
                extents,
                strides,
                lower.as_ptr(),
                upper.as_ptr(),
                *channels,
                *pixels,
                steps,
                in_order,
                swizzle,
                promotion,
                zeros,
            ),
        }
    };
    answer.result()?;
    Ok(EncodedMap(bytemuck::cast(encoded.opaque)))
}

/// Queues a kernel in clusters of blocks; `params` point to its parameters.
pub fn launch(
    function: sys::CUfunction,
    launch: &Launch,
    queue: sys::CUstream,
    params: &mut [*mut c_void; 1],
) -> Answer<()> {
    let Launch { grid, block, cluster: [x, y, z], .. } = *launch;
    let mut attributes = [sys::CUlaunchAttribute {
        id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION,
        pad: [0; 4],
        value: sys::CUlaunchAttributeValue { clusterDim: sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x, y, z } },
    }];
    let config = sys::CUlaunchConfig {
        gridDimX: grid[0],
        gridDimY: grid[1],
        gridDimZ: grid[2],
        blockDimX: block[0],
        blockDimY: block[1],
        blockDimZ: block[2],
        sharedMemBytes: launch.shared,
        hStream: queue,
        attrs: attributes.as_mut_ptr(),
        numAttrs: attributes.len() as u32,
    };
    // SAFETY: the compiler has compared the parameter's layout with the kernel's; the attributes outlive the call.
    unsafe { sys::cuLaunchKernelEx(&config, function, params.as_mut_ptr(), null_mut()) }.result()
}
