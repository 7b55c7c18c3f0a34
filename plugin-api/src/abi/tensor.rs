//! Tensors across the boundary: one pointer to `at::Tensor`, no copy.

use std::ffi::c_void;
use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::ptr::NonNull;

use abi_stable::StableAbi;
use tch::Tensor;
use torch_sys::C_tensor;

/// An owned tensor: whoever holds it frees it. Both sides use one libtorch, so either may.
#[repr(transparent)]
#[derive(StableAbi)]
pub struct RTensor(NonNull<c_void>);

impl RTensor {
    pub(crate) fn new(tensor: Tensor) -> Self {
        let mut tensor = ManuallyDrop::new(tensor);
        let pointer = NonNull::new(tensor.as_mut_ptr().cast()).expect("a tch tensor has a handle");
        Self(pointer)
    }

    pub(crate) fn into_tensor(self) -> Tensor {
        let this = ManuallyDrop::new(self);
        // SAFETY: the handle was owned by `self`, which is forgotten.
        unsafe { Tensor::from_ptr(this.0.as_ptr().cast::<C_tensor>()) }
    }
}

impl Drop for RTensor {
    fn drop(&mut self) {
        // SAFETY: the handle is owned and freed once.
        unsafe { torch_sys::at_free(self.0.as_ptr().cast()) }
    }
}

/// A borrowed tensor.
#[repr(transparent)]
#[derive(StableAbi, Clone, Copy)]
pub struct RTensorRef<'a>(NonNull<c_void>, PhantomData<&'a ()>);

impl<'a> RTensorRef<'a> {
    pub(crate) fn new(tensor: &'a Tensor) -> Self {
        let pointer = tensor.as_ptr().cast_mut().cast();
        Self(NonNull::new(pointer).expect("a tch tensor has a handle"), PhantomData)
    }

    /// The tensor, without touching its reference count.
    pub(crate) fn view(&self) -> View<'a> {
        // SAFETY: the handle lives for 'a, and `View` never drops it.
        let tensor = unsafe { Tensor::from_ptr(self.0.as_ptr().cast::<C_tensor>()) };
        View(ManuallyDrop::new(tensor), PhantomData)
    }
}

/// A `&Tensor` made from a borrowed handle.
pub(crate) struct View<'a>(ManuallyDrop<Tensor>, PhantomData<&'a ()>);

impl Deref for View<'_> {
    type Target = Tensor;

    fn deref(&self) -> &Tensor {
        &self.0
    }
}
