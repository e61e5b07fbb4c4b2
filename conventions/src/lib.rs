//! What must hold of the source tree, as functions that tests call.
//!
//! It reads the workspace's own files: no code of it is built or run. It owns no rule; the rules
//! are the tests in `conventions/tests`.
//!
//! | module | what it holds |
//! |---|---|
//! | [`workspace`] | the crates, their manifests and the files under version control |
//! | [`modules`] | the modules of a crate, what each defines, imports and mentions |
//! | [`exports`] | the types that other crates can name |
//! | [`imports`] | which file needs which other file of its crate |
//! | [`circles`] | groups of files that need each other |
//! | [`documents`] | what documents name, and whether it is there |
//!
//! Not done: macros are not expanded (paths are read from the tokens of their calls), and a method
//! call does not lead to the file of its `impl`. Both would need the compiler.

pub mod circles;
pub mod documents;
pub mod exports;
pub mod imports;
pub mod modules;
pub mod workspace;
