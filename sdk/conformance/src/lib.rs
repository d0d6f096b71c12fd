//! The suite that proves an infranetes provider keeps its promises.
