//! The two macros of a plugin: `register!` beside each component, `export_plugin!()` once a crate.

/// Notes a component in the plugin's registry: `register!(sampler Ancestral);`.
///
/// Kinds: `noise`, `process`, `backbone`, `parameterization`, `sampler`.
#[macro_export]
macro_rules! register {
    ($kind:ident $component:ty) => {
        $crate::inventory::submit! { $crate::abi::module::Entry::$kind::<$component>() }
    };
}

/// Makes this cdylib a plugin. Once in the crate's `lib.rs`.
#[macro_export]
macro_rules! export_plugin {
    () => {
        #[allow(unsafe_code, missing_docs, unreachable_pub)]
        #[doc(hidden)]
        pub mod __maskdiff_plugin {
            use $crate::abi::abi_stable::library::{
                __call_root_module_loader, CheckTypeLayout, IntoRootModuleResult, LibHeader,
                RootModuleResult,
            };
            use $crate::abi::abi_stable::prefix_type::PrefixTypeTrait as _;
            use $crate::abi::abi_stable::std_types::RString;
            use $crate::abi::module::{self, HostApi_Ref, Module, Module_Ref};

            extern "C" fn info() -> RString {
                module::info(
                    env!("CARGO_PKG_NAME"),
                    env!("CARGO_PKG_VERSION"),
                    env!("CARGO_MANIFEST_DIR"),
                )
            }

            extern "C" fn init(host: HostApi_Ref) {
                // `plugins/dit/src/lib.rs` -> `plugins/dit`: how this crate's files are told.
                let file = file!();
                let shown = file.find("src/").map_or("", |end| &file[..end]);
                module::init(host, env!("CARGO_MANIFEST_DIR"), shown);
            }

            fn root() -> Module_Ref {
                Module {
                    info,
                    init,
                    make_noise: module::noise,
                    make_process: module::process,
                    make_backbone: module::backbone,
                    make_parameterization: module::parameterization,
                    make_sampler: module::sampler,
                }
                .leak_into_prefix()
            }

            extern "C" fn erased() -> RootModuleResult {
                __call_root_module_loader(root)
            }

            // SAFETY: the name abi_stable looks up; one per cdylib because a plugin is a cdylib only.
            #[unsafe(no_mangle)]
            pub static _1as_0lib_1header_0root_bmodule_bloader: LibHeader = {
                type Root = <Module_Ref as IntoRootModuleResult>::Module;
                // SAFETY: `erased` returns the root module of exactly this type.
                unsafe { LibHeader::from_constructor::<Root>(erased, CheckTypeLayout::Yes) }
            };
        }
    };
}
