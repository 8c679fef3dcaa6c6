// Package module tells which version of a library a program was built with, so that what a table says is what was run.
package module

import "runtime/debug"

// Version is that of the module at the path, or "unknown".
func Version(path string) string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, dependency := range info.Deps {
			if dependency.Path == path {
				return dependency.Version
			}
		}
	}
	return "unknown"
}
