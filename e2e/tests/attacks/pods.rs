//! From a pod to its host: system settings, our own processes, our own program, what asks for isolation.
