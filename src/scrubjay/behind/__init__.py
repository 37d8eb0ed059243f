"""Write-behind over the ports: the journal takes what is appended, and the store gets it a little later."""
