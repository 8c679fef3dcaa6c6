package postgres

import "syscall"

// kernelGuards says that the kernel signals the postmaster when the thread that started it ends.
const kernelGuards = true

func setParentDeathSignal(attr *syscall.SysProcAttr, signal syscall.Signal) { attr.Pdeathsig = signal }
