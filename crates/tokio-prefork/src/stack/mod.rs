//! Stacks of the threads of a worker: where in the code a stuck request stands.
//!
//! ```text
//! primary                        worker                          stack reader (a short-lived child of the primary)
//! queues a signal to each  --->  handler of each thread copies
//! thread, forks the reader       registers and stack to memory   waits for the copies, at most 500 ms
//!                                that the primary has created -> unwinds and symbolises them from the files of the
//! polls a pipe, kills the                                        program, with limits of time and memory
//! reader at its deadline   <-----------------------------------  writes the result to a pipe
//! ```
//!
//! Nothing is traced or stopped, and the primary waits for nobody. Everything that the worker wrote is only bytes to the
//! reader, which has no other descriptor than its pipe and the memory, and runs as the user of the workers. Only the types
//! of the result exist without the feature `stack-traces`.

#[cfg(feature = "stack-traces")]
mod loaded_files;
#[cfg(feature = "stack-traces")]
mod proc_threads;
#[cfg(feature = "stack-traces")]
pub(crate) mod stack_reader;
#[cfg(feature = "stack-traces")]
mod symbolize;
#[cfg(feature = "stack-traces")]
mod unwind;

mod frame_filter;
mod worker_stack;

pub use worker_stack::{StackFrame, ThreadStack, WorkerStack};
