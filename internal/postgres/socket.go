//go:build unix

package postgres

import (
	"errors"
	"fmt"
	"os"
)

const (
	socketDirPrefix = "tasker-pg-"
	// socketPathLimit is what fits into sockaddr_un everywhere: 104 bytes on macOS, a final zero included.
	socketPathLimit = 103
)

// makeSocketDir makes the private directory that the socket stands in: whoever can enter it is superuser of the database.
// Its path is short because a socket's path must be, so it is not below the data directory.
func makeSocketDir(as account) (string, error) {
	var errs []error
	for _, base := range []string{os.TempDir(), "/tmp", "/var/tmp"} {
		dir, err := os.MkdirTemp(base, socketDirPrefix)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		err = checkSocketDir(dir, as)
		if err == nil {
			return dir, nil
		}
		errs = append(errs, err, os.Remove(dir))
	}
	return "", fmt.Errorf("making a directory for the socket: %w", errors.Join(errs...))
}

func checkSocketDir(dir string, as account) error {
	if path := dir + "/.s.PGSQL." + socketPort + ".lock"; len(path) > socketPathLimit {
		return fmt.Errorf("%s is too long for a socket", path)
	}
	if !as.reaches(dir) {
		return fmt.Errorf("user %s cannot enter %s", userName(as.uid), dir)
	}
	return as.own(dir)
}
