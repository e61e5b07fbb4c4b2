//! The placement driver as a client sees it: its REST interface.
//!
//! | module | what it holds |
//! |---|---|
//! | [`admin`] | requests of administrators, and of programs that run a cluster |
//! | [`causes`] | an error and its causes in one line |

pub mod admin;
pub mod causes;
