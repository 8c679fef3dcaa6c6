package main

import "syscall"

// dieWithUs has the kernel kill a command when the worker dies without having been able to.
func dieWithUs(attributes *syscall.SysProcAttr) { attributes.Pdeathsig = syscall.SIGKILL }
