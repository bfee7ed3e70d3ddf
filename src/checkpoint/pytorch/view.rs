//! Tensors as PyTorch pickles them: views of storages, or what is not read.

use super::{
    super::{
        FileDtype,
        pickle::{Id, Pickle, Value},
        stored::MAX_RANK,
    },
    short,
};

/// A tensor's elements in a storage.
#[derive(Clone, Debug)]
pub(super) struct View {
    /// The storage's key.
    pub storage: String,
    pub dtype: FileDtype,
    /// The first element.
    pub offset: usize,
    pub shape: Vec<usize>,
    /// In elements.
    pub strides: Vec<usize>,
}

impl View {
    /// Elements of the tensor, and how many elements of the storage it reaches: none if either is beyond counting.
    pub fn extent(&self) -> Option<(usize, usize)> {
        let elements = self.shape.iter().try_fold(1usize, |product, &extent| product.checked_mul(extent))?;
        elements.checked_mul(self.dtype.size())?;
        if elements == 0 {
            return Some((0, self.offset));
        }
        let steps = self.shape.iter().zip(&self.strides);
        let last = steps
            .clone()
            .try_fold(self.offset, |last, (&extent, &stride)| last.checked_add((extent - 1).checked_mul(stride)?))?;
        let reach = last.checked_add(1)?;
        reach.checked_mul(self.dtype.size())?;
        (self.shape.len() == self.strides.len()).then_some((elements, reach))
    }

    /// Refuses a view that reaches beyond the elements of its storage.
    pub fn check(self, elements: usize) -> Result<Self, String> {
        let Self { shape, strides, storage, .. } = &self;
        match self.extent() {
            Some((_, reach)) if reach <= elements => Ok(self),
            Some((_, reach)) => Err(format!(
                "has a tensor of {shape:?} with strides {strides:?} that needs {reach} elements of storage {storage}, \
                 which has {elements}"
            )),
            None => Err(format!("has a tensor of {shape:?} with strides {strides:?}, which cannot be")),
        }
    }
}

/// A storage that a pickle refers to.
pub(super) struct Storage {
    pub key: String,
    pub kind: Kind,
    pub elements: usize,
    /// Where in it a view of it begins, and ends.
    view: (usize, usize),
}

/// What a storage holds.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    Of(FileDtype),
    /// Bytes, of which the tensor says what they are.
    Untyped,
    /// So many bytes each, and why they are not read.
    Unread(usize, &'static str),
}

impl Kind {
    /// That of a storage class of PyTorch.
    pub fn of_class(name: &str) -> Option<Self> {
        Some(match name {
            "DoubleStorage" => Kind::Of(FileDtype::F64),
            "FloatStorage" => Kind::Of(FileDtype::F32),
            "HalfStorage" => Kind::Of(FileDtype::F16),
            "BFloat16Storage" => Kind::Of(FileDtype::BF16),
            "LongStorage" => Kind::Of(FileDtype::I64),
            "IntStorage" => Kind::Of(FileDtype::I32),
            "ShortStorage" => Kind::Of(FileDtype::I16),
            "CharStorage" => Kind::Of(FileDtype::I8),
            "ByteStorage" => Kind::Of(FileDtype::U8),
            "BoolStorage" => Kind::Of(FileDtype::Bool),
            "UntypedStorage" => Kind::Untyped,
            "ComplexFloatStorage" => Kind::Unread(8, "complex64, which is not read"),
            "ComplexDoubleStorage" => Kind::Unread(16, "complex128, which is not read"),
            "QInt8Storage" | "QUInt8Storage" | "QUInt4x2Storage" | "QUInt2x4Storage" => Kind::Unread(1, QUANTISED),
            "QInt32Storage" => Kind::Unread(4, QUANTISED),
            _ => return None,
        })
    }

    /// That of a `torch.dtype`.
    fn of_dtype(name: &str) -> Self {
        Kind::Of(match name {
            "float64" | "double" => FileDtype::F64,
            "float32" | "float" => FileDtype::F32,
            "float16" | "half" => FileDtype::F16,
            "bfloat16" => FileDtype::BF16,
            "int64" | "long" => FileDtype::I64,
            "int32" | "int" => FileDtype::I32,
            "int16" | "short" => FileDtype::I16,
            "int8" => FileDtype::I8,
            "uint64" => FileDtype::U64,
            "uint32" => FileDtype::U32,
            "uint16" => FileDtype::U16,
            "uint8" => FileDtype::U8,
            "bool" => FileDtype::Bool,
            "complex32" | "chalf" => return Kind::Unread(4, "complex32, which is not read"),
            "complex64" | "cfloat" => return Kind::Unread(8, "complex64, which is not read"),
            "complex128" | "cdouble" => return Kind::Unread(16, "complex128, which is not read"),
            name if name.starts_with("float8") => {
                return Kind::Unread(1, "float8, which is not read: save it as float32");
            }
            _ => return Kind::Unread(1, "of a type that is not known, and not read"),
        })
    }

    /// Bytes of an element.
    pub fn size(self) -> usize {
        match self {
            Kind::Of(dtype) => dtype.size(),
            Kind::Untyped => 1,
            Kind::Unread(size, _) => size,
        }
    }
}

const QUANTISED: &str = "quantised, which is not read: save what `dequantize()` gives";

/// The storage that `('storage', class, key, device, elements[, view])` refers to.
pub(super) fn storage(pickle: &Pickle, outside: Id) -> Result<Storage, String> {
    let [tag, class, key, _device, elements, view @ ..] = pickle.items(outside) else {
        return Err("refers to something beside its pickle that is no storage".into());
    };
    let class = match pickle.value(*class) {
        Value::Class(global) => &global.name,
        _ => "",
    };
    let (true, Some(kind), Some(key), Some(elements)) =
        (pickle.is_text(*tag, "storage"), Kind::of_class(class), pickle.name(*key), pickle.number(*elements))
    else {
        return Err(format!("has a storage that is not known, {}", short(&class)));
    };
    // A view of it: its own key, its first element and how many there are.
    let view = match view.first().map_or(&[][..], |view| pickle.items(*view)) {
        [_, first, count] => {
            let first = pickle.number(*first);
            first.zip(pickle.number(*count)).and_then(|(first, count)| Some((first, first.checked_add(count)?)))
        }
        _ => Some((0, elements)),
    };
    match view.filter(|(_, end)| *end <= elements && elements.checked_mul(kind.size()).is_some()) {
        Some(view) => Ok(Storage { key, kind, elements, view }),
        None => Err(format!("has a storage {key} whose view is larger than itself")),
    }
}

/// A tensor, or why it is not read.
pub(super) type Read = Result<View, &'static str>;

/// What a call makes.
pub(super) enum Made {
    Tensor(Read),
    /// The same as one of its arguments.
    Same(Id),
    /// Nothing that has to do with a tensor.
    Else,
}

/// What a call of `function` makes. The functions are those of
/// <https://github.com/pytorch/pytorch/blob/main/torch/_utils.py>.
pub(super) fn made(pickle: &Pickle, function: Id, arguments: Id) -> Result<Made, String> {
    let Value::Class(function) = pickle.value(function) else { return Ok(Made::Else) };
    let arguments = pickle.items(arguments);
    let bad = || {
        format!(
            "calls {}, with arguments that are not known: was it written by pickle.dump? torch.save writes others",
            short(function)
        )
    };
    let read = match (function.module.as_str(), function.name.as_str()) {
        ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2" | "_rebuild_tensor_v3") => {
            let [storage, offset, shape, strides, rest @ ..] = arguments else { return Err(bad()) };
            let dtype = match function.name.as_str() {
                "_rebuild_tensor_v3" => match rest.get(2).map(|dtype| pickle.value(*dtype)) {
                    Some(Value::Class(dtype)) => Some(Kind::of_dtype(&dtype.name)),
                    _ => return Err(bad()),
                },
                _ => None,
            };
            // The backward pass and its hooks lie before; a third of these has a type there.
            let flags = rest.get(if dtype.is_some() { 3 } else { 2 });
            let is_lazy = |flag| flags.and_then(|flags| pickle.get(*flags, flag)).map(|flag| pickle.value(flag));
            match ["neg", "conj"].into_iter().any(|flag| matches!(is_lazy(flag), Some(Value::Bool(true)))) {
                true => Err("to be negated or conjugated, which is not read: save what `resolve_neg()` gives"),
                false => view(pickle, *storage, dtype, *offset, [*shape, *strides])?.ok_or_else(bad)?,
            }
        }
        // The last two are those of PyTorch before 1.0.
        ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state")
        | ("torch.nn.parameter", "Parameter")
        | ("torch.autograd.variable", "Variable") => {
            return arguments.first().map(|data| Made::Same(*data)).ok_or_else(bad);
        }
        // The function that makes the tensor, its class, and the function's arguments.
        ("torch._tensor", "_rebuild_from_type" | "_rebuild_from_type_v2") => match arguments {
            [function, _, arguments, ..] if !is_tensor_class(pickle, *function) => {
                return made(pickle, *function, *arguments);
            }
            _ => return Err(bad()),
        },
        ("torch._utils", "_rebuild_sparse_tensor" | "_rebuild_sparse_csr_tensor") => {
            Err("sparse, which is not read: save what `to_dense()` gives")
        }
        ("torch._utils", "_rebuild_qtensor") => Err(QUANTISED),
        ("torch._utils", "_rebuild_nested_tensor") => Err("a nested tensor, which is not read"),
        ("torch._utils", "_rebuild_meta_tensor_no_storage") => Err("without values (of the device meta)"),
        ("torch._utils", name) if name.starts_with("_rebuild_") => Err("a tensor of a kind that is not read"),
        ("numpy.core.multiarray" | "numpy._core.multiarray", "_reconstruct")
        | ("numpy.core.numeric" | "numpy._core.numeric", "_frombuffer") => {
            Err("a NumPy array in a pickle, which is not read: save it as a tensor")
        }
        _ => return Ok(Made::Else),
    };
    Ok(Made::Tensor(read))
}

/// Whether a call of `function` may make a tensor that refers to no storage.
pub(super) fn makes_tensors(pickle: &Pickle, function: Id) -> bool {
    let Value::Class(function) = pickle.value(function) else { return false };
    match function.module.as_str() {
        "torch._utils" | "torch._tensor" => function.name.starts_with("_rebuild_"),
        "numpy.core.multiarray" | "numpy._core.multiarray" => function.name == "_reconstruct",
        "numpy.core.numeric" | "numpy._core.numeric" => function.name == "_frombuffer",
        _ => false,
    }
}

fn is_tensor_class(pickle: &Pickle, function: Id) -> bool {
    matches!(pickle.value(function), Value::Class(global) if global.module == "torch._tensor")
}

/// A view of a storage, of the type that the storage has or else `dtype`; nothing if the arguments are not those.
fn view(
    pickle: &Pickle,
    storage_id: Id,
    dtype: Option<Kind>,
    offset: Id,
    extents: [Id; 2],
) -> Result<Option<Read>, String> {
    let Value::Outside(outside) = pickle.value(storage_id) else { return Ok(None) };
    let storage = storage(pickle, *outside)?;
    let kind = dtype.unwrap_or(storage.kind);
    let dtype = match kind {
        Kind::Of(dtype) => dtype,
        Kind::Unread(_, why) => return Ok(Some(Err(why))),
        Kind::Untyped => return Err(format!("has a tensor of no type, in storage {}", storage.key)),
    };
    if !matches!(storage.kind, Kind::Untyped) && storage.kind.size() != dtype.size() {
        return Err(format!("has a tensor of {dtype} in storage {} of another type", storage.key));
    }
    let [Some(shape), Some(strides)] = extents.map(|extents| numbers(pickle, extents)) else { return Ok(None) };
    let Some(offset) = pickle.number(offset) else { return Ok(None) };
    let (first, end) = storage.view;
    let offset = offset.checked_add(first).ok_or("has a tensor whose place cannot be")?;
    let end = end * storage.kind.size() / dtype.size();
    Ok(Some(Ok(View { storage: storage.key, dtype, offset, shape, strides }.check(end)?)))
}

/// The numbers of a tuple, as it is or as `torch.Size`; nothing if it is none, or longer than any tensor's.
fn numbers(pickle: &Pickle, id: Id) -> Option<Vec<usize>> {
    let items = match pickle.value(id) {
        Value::Tuple(items) | Value::List(items) => items,
        Value::Object(size) if matches!(pickle.value(size.class), Value::Class(class) if class.name == "Size") => {
            pickle.items(*pickle.items(size.arguments).first()?)
        }
        _ => return None,
    };
    let numbers = items.iter().take(MAX_RANK + 1).map(|item| pickle.number(*item));
    numbers.collect::<Option<Vec<_>>>().filter(|numbers| numbers.len() <= MAX_RANK)
}
