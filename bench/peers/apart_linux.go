package peers

import "syscall"

// apart keeps a child out of our process group: a terminal's Ctrl-C reaches us, and we stop the child in order. The kernel
// ends it where we are gone without a word.
func apart() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
}
