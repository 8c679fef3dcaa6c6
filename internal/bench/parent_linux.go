package bench

import "syscall"

// dieWithParent has the kernel kill a child whose parent is gone without a word.
func dieWithParent(attr *syscall.SysProcAttr) { attr.Pdeathsig = syscall.SIGKILL }
