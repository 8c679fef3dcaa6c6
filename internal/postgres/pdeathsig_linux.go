package postgres

import "syscall"

// kernelGuards says that the kernel signals the postmaster when the thread that started it ends. A test says no, to see
// what happens on systems whose kernel does not.
var kernelGuards = true

func setParentDeathSignal(attr *syscall.SysProcAttr, signal syscall.Signal) {
	if kernelGuards {
		attr.Pdeathsig = signal
	}
}
