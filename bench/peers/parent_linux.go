package peers

import "syscall"

// dieWithParent has the kernel end a child whose parent is gone without a word.
func dieWithParent(attr *syscall.SysProcAttr) { attr.Pdeathsig = syscall.SIGTERM }
