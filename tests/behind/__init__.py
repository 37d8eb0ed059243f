"""Write-behind."""
